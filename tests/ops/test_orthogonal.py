"""Orthogonal methods against peft's own layers in float64, and what the generic tests don't show."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from refpeft import Problem
from refpeft.golden import answer, evaluate
from refpeft.methods import BOFT, HRA, OFT, PSOFT, HRAGramSchmidt, RoAd
from refpeft.numerics import standard_precision
from refpeft.operation import find
from refpeft.ops import _rotation, boft, oft

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
SHAPES = [(5, 12), (16, 16), (24, 8)]
PRECISION = standard_precision("float64")


def wrapped(configuration, weight, bias, seed=0):
    """peft's layer around a float64 base, each trainable tensor moved off its start; and these by name."""
    base = torch.nn.Linear(weight.shape[1], len(weight))
    base.weight.data, base.bias.data = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(torch.nn.Sequential(base), configuration).double()
    generator = torch.Generator().manual_seed(seed)
    trained = {n.replace(".default", "").rpartition("0.")[2]: p for n, p in model.named_parameters() if p.requires_grad}
    for p in trained.values():
        p.data = p.data + 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model, trained


def compared(operation, attributes, parameters, configuration, shape, before=None):
    """peft's output, gradients and merged weight against the golden ones: forward within the budget, all normwise."""
    o, i = shape
    random = np.random.default_rng(o * 31 + i)
    weight, bias = (random.normal(size=s).astype(np.float32).astype(float) for s in ((o, i), o))
    x, dy = random.normal(size=(3, i)), random.normal(size=(3, o))
    model, trained = wrapped(configuration, weight, bias)
    arrays = {"x": x, "weight": weight, "bias": bias} | parameters(model, trained)
    problem = Problem.of(operation, arrays, attributes, {"dy": dy})
    golden = answer(problem, PRECISION)
    given = torch.from_numpy(x).requires_grad_()
    y = model(given)
    y.backward(torch.from_numpy(dy))
    close("y", y.detach().numpy(), golden["y"].value)
    close("dx", given.grad.numpy(), golden["dx"].value)
    family = operation.partition(".")[0]
    names = {a.name for a in find(f"{family}.merge").signature.inputs}
    merging = Problem.of(f"{family}.merge", {n: a for n, a in arrays.items() if n in names}, attributes)
    return model, trained, golden, evaluate(merging)["merged"]


def close(name, got, expected):
    """Normwise, to a few thousand units of float64."""
    got = np.asarray(got).reshape(expected.shape)
    assert np.linalg.norm(got - expected) <= 2.0**-41 * (1 + np.linalg.norm(expected)), name


def merged_of(model):
    """peft's merged weight."""
    return model.merge_and_unload()[0].weight.detach().numpy()


@pytest.mark.parametrize(
    ("shape", "variant", "terms", "share"),
    [
        *((shape, variant, 5, False) for shape in SHAPES for variant in ("peft", "neumann")),
        ((5, 12), "peft", 5, True),
        *(((5, 12), "neumann", terms, True) for terms in (1, 2, 3, 4, 7)),
    ],
)
def test_oft_agrees_with_peft(shape, variant, terms, share):
    """Forward, gradient to x and to the triangles, merged weight."""
    own = OFT(block=4, share=share, variant=variant, terms=terms)
    theirs = peft.OFTConfig(
        oft_block_size=4,
        block_share=share,
        use_cayley_neumann=variant == "neumann",
        num_cayley_neumann_terms=terms,
        target_modules=["0"],
    )
    model, trained, golden, merged = compared(
        "oft.linear",
        own.attributes(),
        lambda model, t: {"skew": t["oft_R.weight"].detach().numpy()},
        theirs,
        shape,
    )
    gradient = trained["oft_R.weight"].grad
    close("dskew", 0 * golden["dskew"].value if gradient is None else gradient.numpy(), golden["dskew"].value)
    close("merged", merged_of(model), merged)


def test_the_papers_rotation_is_what_the_series_of_peft_tends_to():
    """And peft's exact one is its inverse."""
    k = 0.1 * np.random.default_rng(0).normal(size=(2, 6))
    paper, inverse = (_rotation.rotation(k, v, 0) for v in ("paper", "peft"))
    np.testing.assert_allclose(_rotation.rotation(k, "neumann", 40), paper, atol=1e-14)
    np.testing.assert_allclose(paper @ inverse, np.broadcast_to(np.eye(4), paper.shape), atol=1e-14)
    first = np.eye(4) + 2 * _rotation.skew(k)
    assert np.max(np.abs(paper - first)) < np.max(np.abs(inverse - first))


def test_one_factor_of_boft_agrees_with_peft():
    """All that peft does without its CUDA extension."""
    own = BOFT(block=4, factors=1, variant="peft")
    theirs = peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, target_modules=["0"])
    for shape in SHAPES:
        model, trained, golden, merged = compared(
            "boft.linear",
            own.attributes(),
            lambda model, t: {"q": t["boft_R"].detach().numpy(), "scale": t["boft_s"].detach().numpy()[:, 0]},
            theirs,
            shape,
        )
        close("dq", trained["boft_R"].grad.numpy(), golden["dq"].value)
        close("dscale", trained["boft_s"].grad.numpy(), golden["dscale"].value)
        close("merged", merged_of(model), merged)


@pytest.mark.parametrize("factors", [1, 2, 3])
@pytest.mark.parametrize("block", [2, 4])
def test_the_butterfly_is_that_of_the_authors(block, factors):
    """The dense product that peft forms from its permutation matrices."""
    from peft.tuners.boft.layer import BOFTLayer

    size = block * 2 ** (factors - 1) * 3
    q = np.random.default_rng(size).normal(size=(factors, size // block, block, block))
    dense = np.eye(size)
    for level in range(factors):
        runs = size // block // 2**level
        order = BOFTLayer.block_butterfly_perm(None, size, runs, block // 2, factors - 1).numpy()
        p = np.eye(size)[order]
        r = _rotation.rotation(0.5 * _rotation.strict_upper(q[level]), "peft", 0)
        blocks = torch.block_diag(*map(torch.from_numpy, r)).numpy()
        dense = p @ blocks @ p.T @ dense
    got = boft._through(np.eye(size), boft._factors(q, "peft"))
    np.testing.assert_allclose(got, dense, atol=1e-13)


def test_after_all_factors_every_feature_has_met_every_other():
    """M has no zero where block 2^(f-1) is the whole width, and zeros with one factor less."""
    q = np.random.default_rng(0).normal(size=(3, 4, 2, 2))
    whole = boft._through(np.eye(8), boft._factors(q, "paper"))
    part = boft._through(np.eye(8), boft._factors(q[:2], "paper"))
    assert np.all(whole != 0)
    assert np.count_nonzero(part) == 8 * 4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("own", [HRA(rank=4), HRAGramSchmidt(rank=3)], ids=["chain", "gram_schmidt"])
def test_hra_agrees_with_peft(own, shape):
    """Forward, gradient to x and to the vectors, merged weight."""
    gs = own.variant == "gram_schmidt"
    theirs = peft.HRAConfig(r=own.rank, apply_GS=gs, init_weights=not gs, target_modules=["0"])
    model, trained, golden, merged = compared(
        "hra.linear", own.attributes(), lambda model, t: {"u": t["hra_u"].detach().numpy()}, theirs, shape
    )
    close("du", trained["hra_u"].grad.numpy(), golden["du"].value)
    close("merged", merged_of(model), merged)


def test_hra_needs_pairs_to_begin_at_the_base_model():
    """An odd rank is refused in one sentence."""
    with pytest.raises(ValueError, match="HRA: rank must be even, but 3 came"):
        HRA(rank=3)


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize(("shape", "group"), [((8, 3), 2), ((24, 8), 8), ((8, 24), 4)])
def test_road_agrees_with_peft(shape, group, variant):
    """Forward, gradient to x, to angles and scales, merged weight."""
    own = RoAd(variant=variant, group=group)
    theirs = peft.RoadConfig(variant=variant, group_size=group, target_modules=["0"])
    model, trained, golden, merged = compared(
        "road.linear",
        own.attributes(),
        lambda model, t: {n: t[f"road_{n}"].detach().numpy() for n in ("theta", "alpha")},
        theirs,
        shape,
    )
    for name in ("theta", "alpha"):
        close(name, trained[f"road_{name}"].grad.numpy(), golden["d" + name].value)
    close("merged", merged_of(model), merged)


@pytest.mark.parametrize("variant", ["paper", "neumann"])
@pytest.mark.parametrize("shape", SHAPES)
def test_psoft_agrees_with_peft(shape, variant):
    """Forward, gradient to x, to the triangle and the magnitudes, merged weight, on peft's own frozen factors."""
    own = PSOFT(rank=4, alpha=8.0, variant=variant)
    theirs = peft.PsoftConfig(r=4, psoft_alpha=8, use_cayley_neumann=variant == "neumann", target_modules=["0"])

    def parameters(model, t):
        layer = model.base_model.model[0]
        frozen = {n: getattr(layer, f"_psoft_{n.upper()}_cache")["default"].numpy() for n in ("a", "b")}
        names = {"skew": "weight", "alpha": "vector_a", "beta": "vector_b"}
        return frozen | {n: t[f"psoft_R.{theirs_}"].detach().numpy() for n, theirs_ in names.items()}

    model, trained, golden, merged = compared("psoft.linear", own.attributes(), parameters, theirs, shape)
    for name, theirs_ in {"skew": "weight", "alpha": "vector_a", "beta": "vector_b"}.items():
        close(name, trained[f"psoft_R.{theirs_}"].grad.numpy(), golden["d" + name].value)
    close("merged", merged_of(model), merged)


def test_the_factors_of_psoft_are_the_principal_part_of_the_weight():
    """s B A is the best approximation of that rank, and the rows of A are orthonormal."""
    weight = np.random.default_rng(0).normal(size=(7, 5))
    method = PSOFT(rank=3, alpha=6.0)
    start = method.init(np.random.default_rng(0), weight)
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    best = u[:, :3] * s[:3] @ vt[:3]
    np.testing.assert_allclose(method.attributes()["scaling"] * start["b"] @ start["a"], best, atol=1e-14)
    np.testing.assert_allclose(start["a"] @ start["a"].T, np.eye(3), atol=1e-14)


def test_an_oft_convolution_is_the_convolution_with_turned_filters():
    """Its merged kernel under torch's own convolution."""
    random = np.random.default_rng(0)
    weight, x, skew = random.normal(size=(4, 2, 3, 2)), random.normal(size=(2, 4, 6, 5)), random.normal(size=(3, 6))
    how = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
    kernel = oft.merge(weight.reshape(4, 12), skew, block=4).reshape(weight.shape)
    expected = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(kernel), None, *how.values()).numpy()
    np.testing.assert_allclose(oft.conv2d(x, weight, skew, block=4, **how), expected, atol=1e-12)
