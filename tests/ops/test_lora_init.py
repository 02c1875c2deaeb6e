"""Where LoRA starts: bounds and moments of what is drawn, invariants of what is factorised."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refpeft import golden
from refpeft.errors import AttributeValueError, DomainError, DtypeError, ShapeError
from refpeft.numerics.formats import FLOAT64, FORMATS, as_format, store, ulp
from refpeft.ops import lora_init
from refpeft.ops.lora_init import gaussian, kaiming_uniform, olora, pissa, zeros
from refpeft.problem import Problem

DEVIATIONS = 6.0
"""Standard deviations within which a moment must lie: by chance it lies outside once in 500 million seeds."""
SHAPES = [(12, 9), (9, 12), (7, 7), (1, 5), (5, 1)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
every_dtype = pytest.mark.parametrize("dtype", FORMATS)
both = pytest.mark.parametrize("initialise", [pissa, olora], ids=lambda f: f.__name__)


def weight_of(shape, dtype="float64", seed=0):
    return store(np.random.default_rng(seed).normal(size=shape), as_format(dtype))


def assert_moments(sample, variance, fourth):
    """Mean and variance of independent draws, by the variances of their own estimators."""
    n = sample.size
    assert abs(sample.mean()) <= DEVIATIONS * math.sqrt(variance / n)
    assert abs((sample**2).mean() - variance) <= DEVIATIONS * math.sqrt((fourth - variance**2) / n)


@pytest.mark.parametrize("shape", [(64, 400), (32, 16, 3, 5)])
def test_kaiming_uniform_has_its_bounds_and_moments(shape):
    """Uniform between the roots of 1/fan-in: variance f**-1/3, fourth moment f**-2/5; the bounds are nearly reached."""
    sample = kaiming_uniform(np.random.default_rng(0), shape)
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    assert sample.shape == shape
    assert np.all(np.abs(sample) <= bound)
    beyond = (1 - DEVIATIONS**2 / sample.size) * bound
    assert sample.max() > beyond
    assert sample.min() < -beyond
    assert_moments(sample, bound**2 / 3, bound**4 / 5)


@pytest.mark.parametrize(("given", "std"), [(None, 1 / 64), (0.02, 0.02)])
def test_gaussian_has_its_moments(given, std):
    """Mean 0, deviation 1/r unless another is given, fourth moment 3 std**4."""
    sample = gaussian(np.random.default_rng(0), (64, 400), given)
    assert_moments(sample, std**2, 3 * std**4)
    assert_moments(sample[:, ::2] * sample[:, 1::2], std**4, 9 * std**8)


def test_b_is_zero():
    """So that the update is zero at first."""
    assert not zeros((5, 3)).any()


@pytest.mark.parametrize("draw", [kaiming_uniform, gaussian])
def test_the_generator_decides(draw):
    """The same seed gives the same numbers, another one others."""
    first, again, other = (draw(np.random.default_rng(s), (4, 5)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)


@both
@every_dtype
@every_shape
def test_residual_and_update_give_the_weight_back(initialise, shape, dtype):
    """To within one ulp of the residual, which is correctly rounded from the factors as stored."""
    weight = weight_of(shape, dtype)
    for rank in range(1, min(shape) + 1):
        for scaling in (1.0, 0.3, 8.0):
            a, b, residual = initialise(weight, rank, scaling=scaling)
            assert a.dtype == b.dtype == residual.dtype == weight.dtype
            assert (a.shape, b.shape, residual.shape) == ((rank, shape[1]), (shape[0], rank), shape)
            problem = Problem.of("lora.merge", {"weight": residual, "a": a, "b": b}, {"scaling": scaling})
            merged = golden.stored(problem)["merged"].astype(float)
            assert np.all(np.abs(merged - weight.astype(float)) <= ulp(residual, as_format(dtype)))


@every_shape
def test_pissa_is_the_best_approximation(shape):
    """Eckart and Young: no matrix of rank r is nearer to W than the root of the sum of the other sigma**2."""
    weight = weight_of(shape)
    singular = np.linalg.svd(weight, compute_uv=False)
    slack = factorisation_error(weight)
    for rank in range(1, min(shape) + 1):
        a, b, residual = pissa(weight, rank, scaling=2.5)
        assert abs(np.linalg.norm(residual) - np.linalg.norm(singular[rank:])) <= slack
        assert abs(np.linalg.norm(residual, 2) - singular[rank:].max(initial=0.0)) <= slack
        np.testing.assert_allclose(
            np.linalg.svd(2.5 * b @ a, compute_uv=False)[:rank], singular[:rank], rtol=0, atol=slack
        )


@every_shape
def test_pissa_splits_the_singular_values_evenly(shape):
    """A Aᵀ and Bᵀ B are both the diagonal of S_r / s."""
    weight, rank = weight_of(shape), min(shape)
    a, b, _ = pissa(weight, rank, scaling=0.5)
    wanted = np.diag(np.linalg.svd(weight, compute_uv=False)[:rank] / 0.5)
    for gram in (a @ a.T, b.T @ b):
        assert np.linalg.norm(gram - wanted) <= factorisation_error(weight) / 0.5


@every_shape
def test_olora_has_an_orthonormal_b(shape):
    """Bᵀ B is the identity, A is upper triangular, and their product is W under the projection on B's columns."""
    weight = weight_of(shape)
    for rank in range(1, min(shape) + 1):
        a, b, residual = olora(weight, rank, scaling=1.0)
        assert np.linalg.norm(b.T @ b - np.eye(rank)) <= factorisation_error(np.eye(shape[0]))
        assert np.array_equal(a, np.triu(a))
        assert np.linalg.norm(b @ a - b @ (b.T @ weight)) <= factorisation_error(weight)
        assert np.linalg.norm(b.T @ residual) <= factorisation_error(weight)


def test_olora_ignores_the_scaling_in_its_factors():
    """Only the residual knows it: W - s Q_r R_r."""
    weight = weight_of((6, 5))
    one, four = olora(weight, 2, scaling=1.0), olora(weight, 2, scaling=4.0)
    np.testing.assert_array_equal(one.a, four.a)
    np.testing.assert_array_equal(one.b, four.b)
    assert np.linalg.norm(four.residual) > np.linalg.norm(one.residual)


def factorisation_error(weight) -> float:
    """Of a backward stable SVD or QR in the Frobenius norm, with 16 m n for the modest polynomial of the textbooks."""
    return 16 * weight.size * FLOAT64.unit * np.linalg.norm(weight)


@both
@pytest.mark.parametrize("rank", [0, 4, -1, 2.0, True])
def test_a_rank_that_does_not_fit_is_refused(initialise, rank):
    """It is an integer from 1 to the smaller side."""
    with pytest.raises(AttributeValueError, match="rank must be an integer from 1 to 3, the smaller side of weight"):
        initialise(weight_of((3, 5)), rank, scaling=1.0)


@pytest.mark.parametrize("scaling", [0.0, -1.0, math.inf, math.nan])
def test_pissa_needs_a_positive_scaling(scaling):
    """The root of S / s is taken."""
    with pytest.raises(AttributeValueError, match="pissa: scaling must be a finite number above 0"):
        pissa(weight_of((3, 5)), 1, scaling=scaling)


@both
def test_what_is_no_matrix_of_finite_numbers_is_refused(initialise):
    """Each refusal in its own class."""
    weight = weight_of((3, 5))
    with pytest.raises(ShapeError, match="weight must be a matrix"):
        initialise(weight[0], 1, scaling=1.0)
    with pytest.raises(DtypeError):
        initialise(weight.astype(int), 1, scaling=1.0)
    weight[0, 0] = np.nan
    with pytest.raises(DomainError, match="weight holds NaN or infinity"):
        initialise(weight, 1, scaling=1.0)


def test_a_shape_without_fan_in_is_refused():
    """A vector has none."""
    with pytest.raises(ShapeError, match="the shape of A must be"):
        kaiming_uniform(np.random.default_rng(0), (5,))


@both
def test_peft_starts_at_the_same_place(initialise):
    """Its factors are these up to the sign of each component, to what a factorisation in float32 errs."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    base = torch.nn.Linear(9, 12, bias=False)
    with torch.no_grad():
        base.weight.copy_(torch.from_numpy(np.diag(np.arange(12.0, 0.0, -1.0))[:, :9] + 0.1 * weight_of((12, 9))))
    weight = base.weight.detach().numpy().copy()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights=initialise.__name__)
    layer = peft.get_peft_model(torch.nn.Sequential(base), config).base_model.model[0]
    theirs = [layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight]
    a, b, residual = (t.detach().numpy().astype(float) for t in theirs)
    mine = initialise(weight, 3, scaling=2.0)
    error = 16 * weight.size * FORMATS["float32"].unit * np.linalg.norm(weight)
    signs = np.sign(np.sum(a * mine.a, axis=1))
    assert np.linalg.norm(signs[:, None] * a - mine.a) <= error
    assert np.linalg.norm(b * signs - mine.b) <= error
    assert np.linalg.norm(residual - mine.residual) <= error


@pytest.mark.parametrize("kind", [True, "gaussian"])
def test_peft_draws_from_the_same_distribution(kind):
    """Its A has the bound of the uniform or the moments of the normal one, and its B is zero."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=64, target_modules=["0"], init_lora_weights=kind)
    layer = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(400, 8)), config).base_model.model[0]
    a = layer.lora_A["default"].weight.detach().numpy().astype(float)
    variance, fourth = (1 / 1200, 1 / 400**2 / 5) if kind is True else (64.0**-2, 3 * 64.0**-4)
    assert_moments(a, variance, fourth)
    assert not layer.lora_B["default"].weight.any()
    assert kind != True or np.abs(a).max() <= np.float32(1 / math.sqrt(400))  # noqa: E712


def test_initialisers_are_no_operations():
    """They draw at random, or their factors are unique only up to signs: they have no golden value."""
    from refpeft.operation import catalogue

    assert not any(o.__module__ == lora_init.__name__ for o in catalogue().values())
