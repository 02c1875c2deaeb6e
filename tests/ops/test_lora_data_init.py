"""Starts that have seen data: what each promises, and peft's own."""

from types import SimpleNamespace

import numpy as np
import pytest

from refpeft.errors import AttributeValueError, DomainError, ShapeError
from refpeft.ops.lora_data_init import corda, eva, eva_ranks, loftq, lora_ga
from refpeft.ops.lora_init import mica, orthogonal
from refpeft.ops.lora_inputs import Inputs

SCALING = 2.0


def drawn(*shape, seed=0, dtype=np.float64):
    """A random matrix."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def inputs(t=50, i=6):
    """Rows with a mean, and directions of unequal variance."""
    return drawn(t, i, seed=1) @ np.diag([5.0, 3.0, 2.0, 1.0, 0.5, 0.2][:i]) @ drawn(i, i, seed=2) + 3.0


def gives_the_weight_back(weight, factors, scaling):
    """residual + s B A = W, to the rounding of the sum's terms."""
    update = scaling * factors.b @ factors.a
    room = 2.0**-50 * (np.abs(weight) + np.abs(update))
    return np.all(np.abs(factors.residual + update - weight) <= room)


def up_to_signs(ours, theirs, unit):
    """Whether rows agree, each to a sign."""
    signs = np.sign(np.sum(ours * theirs, axis=1, keepdims=True))
    return np.linalg.norm(ours - signs * theirs) <= unit * np.linalg.norm(ours)


def test_inputs_that_come_in_batches_are_those_that_come_at_once():
    """Number, mean, covariance and shares of the variance, whatever the batches, small directions beside large ones too."""
    x = inputs() @ np.diag(2.0 ** -np.arange(0, 30, 5)) + 100.0
    whole, joined = Inputs.of(x), Inputs.of(x[:2])
    for start, stop in ((2, 3), (3, 20), (20, 50)):
        joined = joined.joined(Inputs.of(x[start:stop].reshape(1, -1, 6)))
    assert joined.tokens == whole.tokens == 50
    assert np.linalg.norm(joined.mean - whole.mean) <= 2.0**-48 * np.linalg.norm(whole.mean)
    for got in (joined.covariance, whole.covariance):
        assert np.linalg.norm(got - x.T @ x) <= 2.0**-46 * np.linalg.norm(x) ** 2
    np.testing.assert_allclose(joined.explained, whole.explained, rtol=2.0**-20)
    assert whole.explained.sum() == pytest.approx(1, rel=2.0**-48)


def test_evas_directions_hold_most_of_the_variance():
    """Orthonormal, and their share of the variance is the largest that three directions can have."""
    x = inputs()
    a, centred = eva(Inputs.of(x), 3), x - x.mean(axis=0)
    assert np.linalg.norm(a @ a.T - np.eye(3)) <= 2.0**-48
    singular = np.linalg.svd(centred, compute_uv=False)
    assert np.linalg.norm(centred @ a.T) ** 2 == pytest.approx(np.sum(singular[:3] ** 2), rel=2.0**-45)


@pytest.mark.parametrize("whiten", [False, True])
def test_eva_is_pefts(whiten):
    """peft's incremental decomposition of one batch, in float64."""
    torch, pca = pytest.importorskip("torch"), pytest.importorskip("peft.utils.incremental_pca")
    fitted = pca.IncrementalPCA(n_components=3).partial_fit(torch.from_numpy(inputs()))
    theirs = fitted.components_ / fitted.singular_values_.sqrt()[:, None] if whiten else fitted.components_
    assert up_to_signs(eva(Inputs.of(inputs()), 3, whiten=whiten), theirs.numpy(), 2.0**-40)


def test_evas_ranks_go_where_variance_is_explained():
    """The budget's largest shares, over all layers."""
    shares = {"q": np.array([0.6, 0.3, 0.05]), "k": np.array([0.9, 0.04, 0.01]), "v": np.array([0.2, 0.1, 0.05])}
    assert eva_ranks(shares, 4) == {"q": 2, "k": 1, "v": 1}
    assert sum(eva_ranks(shares, 7).values()) == 7


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_is_oriented_by_the_covariance(mode):
    """Of W C' the update holds the largest singular values, or the smallest; the weight comes back."""
    weight, c = drawn(8, 6), inputs().T @ inputs()
    factors = corda(weight, c, 2, scaling=SCALING, mode=mode)
    assert gives_the_weight_back(weight, factors, SCALING)
    damped = c + 0.01 * np.mean(np.diag(c)) * np.eye(6)
    held = np.linalg.svd(SCALING * factors.b @ factors.a @ damped, compute_uv=False)[:2]
    whole = np.linalg.svd(weight @ damped, compute_uv=False)
    assert np.linalg.norm(held - (whole[:2] if mode == "ipm" else whole[-2:])) <= 2.0**-35 * whole[0]


def test_corda_is_pefts():
    """The update of peft's own decomposition, which is in float32."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft.tuners.lora.corda")
    weight, c = drawn(8, 6, dtype=np.float32), inputs(i=6).T @ inputs(i=6)
    linear = torch.nn.Linear(6, 8, bias=False)
    linear.weight.data, linear.covariance_matrix = torch.from_numpy(weight), torch.from_numpy(c)
    eigens = theirs.collect_eigens_for_layer(linear, SimpleNamespace())
    u, s, v = (t.numpy().astype(np.float64) for t in (eigens.U_WC, eigens.S_WC, eigens.V_WC))
    expected = (u[:, :2] * s[:2]) @ v[:, :2].T
    factors = corda(weight, c, 2, scaling=SCALING)
    got = SCALING * factors.b.astype(np.float64) @ factors.a.astype(np.float64)
    assert np.linalg.norm(got - expected) <= 2.0**-12 * np.linalg.norm(expected)


@pytest.mark.parametrize("scale", ["stable", "weight_svd", "gd_scale", "unit"])
@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_lora_ga_is_pefts(direction, scale):
    """Factors of peft's own layer, up to the signs that a decomposition leaves open; the weight comes back.

    peft's are in float32. Its largest singular value of the weight is a random estimate from below, which only scales B.
    """
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    weight, gradient = drawn(12, 10, dtype=np.float32), drawn(12, 10, seed=3, dtype=np.float32)
    linear = torch.nn.Linear(10, 12, bias=False)
    linear.weight.data, linear._peft_loraga_grad = torch.from_numpy(weight.copy()), torch.from_numpy(gradient)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["0"],
        init_lora_weights="lora_ga",
        lora_ga_config=peft.tuners.lora.config.LoraGAConfig(direction=direction, scale=scale),
    )
    layer = peft.get_peft_model(torch.nn.Sequential(linear), config).base_model.model[0]
    ours = lora_ga(weight, gradient, 3, scaling=SCALING, direction=direction, scale=scale, variant="peft")
    a, b = (factor["default"].weight.detach().numpy() for factor in (layer.lora_A, layer.lora_B))
    if scale == "weight_svd":
        lengths = [np.linalg.norm(factor[:, 0]) for factor in (ours.b, b)]
        assert lengths[0] == pytest.approx(np.linalg.norm(weight.astype(np.float64), 2), rel=2.0**-20)
        assert lengths[1] <= lengths[0] * (1 + 2.0**-12)
        b = b * (lengths[0] / lengths[1])
    assert up_to_signs(ours.a, a, 2.0**-12) and up_to_signs(ours.b.T, b.T, 2.0**-12)
    whole = ours.residual.astype(np.float64) + SCALING * ours.b.astype(np.float64) @ ours.a.astype(np.float64)
    assert np.linalg.norm(whole - weight) <= 2.0**-22 * np.linalg.norm(ours.residual)


@pytest.mark.parametrize("scale", ["stable", "weight_svd", "gd_scale", "unit"])
@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_lora_gas_first_step_is_that_of_full_fine_tuning(direction, scale):
    """It moves the weight along the best approximation of rank 2 r that the gradient has; peft's moves it elsewhere."""
    weight, gradient = drawn(12, 10), drawn(12, 10, seed=3)
    u, s, vt = np.linalg.svd(gradient)
    best = (u[:, :6] * s[:6]) @ vt[:6]

    def angle(variant):
        """Between the step and that one, as a cosine."""
        options = {"direction": direction, "scale": scale, "variant": variant}
        factors = lora_ga(weight, gradient, 3, scaling=SCALING, **options)
        assert gives_the_weight_back(weight, factors, SCALING)
        step = factors.b @ factors.b.T @ gradient + gradient @ factors.a.T @ factors.a
        return np.sum(step * best) / np.linalg.norm(step) / np.linalg.norm(best)

    assert angle("authors") == pytest.approx(1, rel=2.0**-46)
    assert angle("peft") < 0.95


@pytest.mark.parametrize("iterations", [1, 3])
def test_loftq_makes_up_for_what_the_quantiser_loses(iterations):
    """Base and update lie nearer to the weight than the base alone, by what the largest singular values of the loss hold."""
    weight = drawn(32, 24, dtype=np.float32)
    found = loftq(weight, 4, scaling=SCALING, iterations=iterations)
    base = found.base(weight.shape)
    loss, rest = weight - base, weight - base - SCALING * found.b @ found.a
    left_out = np.linalg.svd(loss.astype(np.float64), compute_uv=False)[4:]
    assert np.linalg.norm(rest) == pytest.approx(np.linalg.norm(left_out), rel=2.0**-40)
    alone = loftq(weight, 1).base(weight.shape)
    assert np.linalg.norm(rest) < np.linalg.norm(weight - alone)
    assert iterations > 1 or np.array_equal(base, alone)


def test_loftq_is_bitsandbytes_nf4_with_pefts_decomposition():
    """The base is what bitsandbytes makes of the weight, bit for bit; the factors are those of peft's function."""
    torch, utils = pytest.importorskip("torch"), pytest.importorskip("peft.utils.loftq_utils")
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = drawn(32, 64, dtype=np.float32)
    packed, state = functional.quantize_4bit(torch.from_numpy(weight), blocksize=64, quant_type="nf4")
    base = functional.dequantize_4bit(packed, state)
    theirs = utils._low_rank_decomposition((torch.from_numpy(weight) - base).double(), 4)
    found = loftq(weight, 4)
    assert np.array_equal(found.base(weight.shape), base.numpy())
    update = (theirs["L"] @ theirs["R"]).numpy()
    assert np.linalg.norm(found.b @ found.a - update) <= 2.0**-40 * np.linalg.norm(update)


def test_orthogonal_factors_are_both_at_work_and_their_product_is_zero():
    """So that training begins at the base model with gradients to both."""
    a, b = orthogonal(np.random.default_rng(0), 4, 9, 7)
    assert a.shape == (4, 7) and b.shape == (9, 4)
    assert np.linalg.norm(b @ a) <= 2.0**-48 * np.linalg.norm(b) * np.linalg.norm(a)
    assert np.linalg.matrix_rank(a) == np.linalg.matrix_rank(b) == 2
    with pytest.raises(AttributeValueError, match="rank must be even"):
        orthogonal(np.random.default_rng(0), 3, 9, 7)


def test_micas_b_spans_the_smallest_singular_values():
    """peft's, up to the signs of its columns."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    weight = drawn(9, 7, dtype=np.float32)
    b = mica(weight, 3)
    smallest = np.linalg.svd(weight.astype(np.float64), compute_uv=False)[-3:]
    assert np.linalg.norm(np.linalg.norm(weight.T @ b, axis=0) - smallest) <= 2.0**-18
    linear = torch.nn.Linear(7, 9, bias=False)
    linear.weight.data = torch.from_numpy(weight)
    config = peft.LoraConfig(r=3, target_modules=["0"], init_lora_weights="mica")
    layer = peft.get_peft_model(torch.nn.Sequential(linear), config).base_model.model[0]
    assert up_to_signs(b.T, layer.lora_B["default"].weight.detach().numpy().T, 2.0**-16)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: corda(drawn(4, 4), np.eye(4), 2, scaling=0.0), "scaling must be a finite number above 0"),
        (lambda: corda(drawn(4, 4), np.eye(4), 2, scaling=1.0, mode="x"), "mode must be 'ipm' or 'kpm'"),
        (lambda: lora_ga(drawn(4, 4), drawn(4, 4), 3, scaling=1.0), "rank must be at most 2, half the smaller side"),
        (lambda: lora_ga(drawn(4, 4), drawn(4, 4), 1, scaling=1.0, scale="x"), "scale must be one of stable"),
        (lambda: loftq(drawn(4, 4), 2, iterations=0), "iterations must be an integer of at least 1, but 0 came"),
        (lambda: loftq(drawn(4, 4), 2, iterations=1.5), "iterations must be an integer of at least 1, but 1.5 came"),
        (lambda: eva_ranks({"q": [0.5]}, -1), "budget must be at least 0"),
        (lambda: eva(Inputs.of(inputs()), 7), "rank must be an integer from 1 to 6"),
    ],
)
def test_an_option_outside_its_domain_is_refused(call, said):
    """In one sentence."""
    with pytest.raises(AttributeValueError, match=said):
        call()


def test_data_that_does_not_fit_the_weight_is_refused():
    """By its shape."""
    with pytest.raises(ShapeError, match=r"covariance must be \(4, 4\)"):
        corda(drawn(5, 4), np.eye(5), 2, scaling=1.0)
    with pytest.raises(ShapeError, match=r"gradient must have weight's shape"):
        lora_ga(drawn(6, 4), drawn(4, 6), 1, scaling=1.0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: eva(Inputs.of(np.full((5, 4), np.nan)), 2), "eva: the matrix of inputs holds NaN or infinity"),
        (lambda: eva(Inputs.of(np.ones((5, 4))), 2, whiten=True), "vary in fewer than 2 directions"),
        (lambda: corda(drawn(4, 4), np.zeros((4, 4)), 2, scaling=1.0), "trace above 0"),
        (lambda: corda(drawn(4, 4), np.full((4, 4), np.inf), 2, scaling=1.0), "covariance holds NaN or infinity"),
        (lambda: lora_ga(drawn(4, 4), np.full((4, 4), np.inf), 2, scaling=1.0), "gradient holds NaN or infinity"),
    ],
)
def test_data_that_says_nothing_is_refused(call, said):
    """By its own name, before a factorisation fails on it."""
    with pytest.raises(DomainError, match=said):
        call()
