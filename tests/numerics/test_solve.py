"""solve: good to a hundred bits in double-double, its bound kept by every solver that is admitted, exact where it says so."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from refpeft.numerics import TF32, rounding_model, standard_precision
from refpeft.numerics.formats import round_to_format
from refpeft.numerics.interpretations import Bounded, ComplexStep, DoubleDouble, Exact, Inexact, Perturbed
from refpeft.numerics.primitives import solve

FLOAT32 = standard_precision("float32")
HADAMARD = np.array([[1.0, 1, 1, 1], [-1, 1, -1, 1], [-1, 1, 1, -1], [-1, -1, 1, 1]])
"""I + K with all entries of K one in magnitude: its rows are orthogonal."""


def skewed(random, n, scale=1.0, batch=()):
    """I + K with K skew-symmetric, its entries float32 numbers."""
    k = (scale * random.normal(size=(*batch, n, n))).astype(np.float32).astype(float)
    k = np.triu(k, 1)
    return np.eye(n) + k - np.swapaxes(k, -1, -2)


def in_order(a, b, order, kept):
    """Elimination with rows taken in an order, each operation rounded by ``kept``; overwrites nothing."""
    a, b = a[order].copy(), b[order].copy()
    n = len(a)
    for k in range(n):
        for i in range(k + 1, n):
            factor = kept(a[i, k] / a[k, k])
            a[i, k:] = kept(a[i, k:] - kept(factor * a[k, k:]))
            b[i] = kept(b[i] - kept(factor * b[k]))
    x = np.zeros_like(b)
    for k in reversed(range(n)):
        rest = b[k]
        for j in range(k + 1, n):
            rest = kept(rest - kept(a[k, j] * x[j]))
        x[k] = kept(rest / a[k, k])
    return x


def rational(a, b):
    """X in rational arithmetic."""
    exact = np.vectorize(Fraction, otypes=[object])
    return in_order(exact(a), exact(b), np.arange(len(a)), lambda v: v)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_double_double_is_good_to_a_hundred_bits(n):
    """Against elimination in rational numbers, pivots of any size."""
    random = np.random.default_rng(n)
    a, b = random.normal(size=(n, n)) * 2.0 ** random.integers(-9, 9, (n, 1)), random.normal(size=(n, 2))
    x, expected = solve(DoubleDouble(a), DoubleDouble(b)), rational(a, b)
    for hi, lo, truth in zip(x.hi.flat, x.lo.flat, expected.flat):
        assert abs(Fraction(hi) + Fraction(lo) - truth) <= abs(truth) * Fraction(np.linalg.cond(a)) / 2**98


def test_double_double_pivots():
    """A zero in the pivot's place is exchanged, in each matrix of a batch by itself."""
    a = np.stack([[[0.0, 1.0], [1.0, 0.0]], np.eye(2)])
    np.testing.assert_array_equal(solve(DoubleDouble(a), DoubleDouble(a)).hi, np.stack([np.eye(2)] * 2))


@pytest.mark.parametrize("operands", [None, TF32], ids=["fp32", "tf32"])
@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_every_order_of_elimination_and_the_inverse_stay_within_the_bound(n, operands):
    """In float32 by hand without pivoting, by LAPACK, and through the inverse; the bound isn't vacuous."""
    model = rounding_model(standard_precision("float32", operands=operands))
    random = np.random.default_rng(n)
    for _ in range(20):
        a, b = skewed(random, n), random.normal(size=(n, 3)).astype(np.float32).astype(float)
        bound = solve(Bounded.input(a, model), Bounded.input(b, model))
        single = [x.astype(np.float32) for x in (a, b)]
        ways = [
            in_order(a, b, np.arange(n), lambda v: round_to_format(v, FLOAT32.storage)),
            solve(*single),
            np.linalg.inv(single[0]) @ single[1],
        ]
        for got in ways:
            assert np.all(np.abs(got - bound.value) <= bound.error)
        if operands is None:
            assert np.max(bound.error) < 0.1 * np.max(np.abs(bound.value))


def test_errors_of_both_operands_come_through():
    """Any matrix and right side within their errors give a solution within the bound."""
    random, model = np.random.default_rng(0), rounding_model(FLOAT32)
    a, b = skewed(random, 4), random.normal(size=(4, 2))
    spread = [np.full(x.shape, 1e-3) for x in (a, b)]
    bound = solve(Bounded(a, spread[0], model), Bounded(b, spread[1], model))
    largest = 0.0
    for _ in range(200):
        moved = [x + random.choice([-1, 1], x.shape) * e for x, e in zip((a, b), spread)]
        share = np.abs(solve(*moved) - bound.value) / bound.error
        largest = max(largest, float(np.max(share)))
    assert 0.05 < largest <= 1


@pytest.mark.parametrize(
    ("a", "error"),
    [
        (np.ones((2, 2)), 0.0),
        (np.eye(2), 1.0),
        (np.diag([1.0, 0.0]), 0.0),
        (np.array([[1.0, 1.0], [1.0, 1.0 + 2.0**-23]]), 0.0),
    ],
)
def test_what_may_be_singular_has_no_finite_bound(a, error):
    """Singular, singular within its error, or within the solver's own."""
    model = rounding_model(FLOAT32)
    bound = solve(Bounded(a, np.full((2, 2), error), model), Bounded.input(np.ones((2, 1)), model))
    assert not np.any(np.isfinite(bound.error))


def test_one_of_a_batch_may_be_singular():
    """It is NaN, and the others are solved."""
    a = np.stack([np.eye(2), np.zeros((2, 2)), 2 * np.eye(2)])
    np.testing.assert_array_equal(solve(a, np.ones((2, 1)))[:, 0, 0], [1.0, np.nan, 0.5])
    assert np.isnan(solve(np.zeros((2, 2)), np.ones((2, 1)))).all()


def test_a_complex_step_is_the_derivative_of_the_inverse():
    """dX = -A^-1 dA X."""
    random = np.random.default_rng(3)
    a, da, b = skewed(random, 5), random.normal(size=(5, 5)), random.normal(size=(5, 2))
    x = solve(ComplexStep.along(a, da), ComplexStep.along(b, np.zeros_like(b)))
    np.testing.assert_allclose(x.derivative, -solve(a, da @ solve(a, b)), rtol=1e-13)


@pytest.mark.parametrize(
    "a",
    [
        np.eye(5),
        np.eye(7)[::-1],
        np.array([[1.0, 1.0], [-1.0, 1.0]]),
        HADAMARD,
        np.kron(np.eye(3), HADAMARD)[:, np.random.default_rng(0).permutation(12)],
        np.diag([0.5, -4.0]),
    ],
)
def test_quarter_turns_and_permutations_are_exact(a):
    """Each order of the rows gives the same numbers, and so does the inverse."""
    b = np.arange(2.0 * len(a)).reshape(len(a), 2)
    x = solve(Exact.input(a, FLOAT32), Exact.input(b, FLOAT32))
    np.testing.assert_array_equal(a @ x.value, b)
    assert isinstance(x, Exact)


@pytest.mark.parametrize(
    ("a", "said"),
    [
        (np.array([[1.0, 2.0], [-2.0, 1.0]]), "not representable|more bits"),
        (np.diag([3.0, 1.0]), "not representable|more bits"),
        (np.ones((2, 2)), "singular"),
        (np.zeros((1, 1)), "singular"),
        (np.ones((5, 5)) + 3 * np.eye(5), "hang together"),
        (np.array([[1.0, 2.0], [2.0, 2.0]]), None),
    ],
)
def test_what_some_order_does_not_represent_is_refused(a, said):
    """A pivot of three, a fifth in the inverse, no pivot at all, too many unknowns; but not where every order is exact."""
    given = Exact.input(a, FLOAT32), Exact.input(3 * np.ones((len(a), 1)), FLOAT32)
    if said is None:
        np.testing.assert_array_equal(a @ solve(*given).value, given[1].value)
    else:
        with pytest.raises(Inexact, match=said):
            solve(*given)


def test_a_perturbed_solution_moves_within_its_own_rounding():
    """Far less than the proven bound, and not at all without a generator."""
    a, b = skewed(np.random.default_rng(1), 6), np.ones((6, 1))
    model = rounding_model(FLOAT32, probable=True)
    proven = solve(*(Bounded.input(x, rounding_model(FLOAT32)) for x in (a, b)))
    moved = solve(*(Perturbed.input(x, model, np.random.default_rng(0)) for x in (a, b)))
    still = solve(*(Perturbed.input(x, model, None) for x in (a, b)))
    np.testing.assert_array_equal(still.value, proven.value)
    assert 0 < np.max(np.abs(moved.value - still.value)) < np.max(proven.error) / 10
