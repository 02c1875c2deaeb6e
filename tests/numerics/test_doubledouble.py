"""Double-double: within 2**-100 of the truth, which rationals and mpmath tell."""

from __future__ import annotations

import warnings
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from refpeft.numerics.doubledouble import two_prod, two_sum
from refpeft.numerics.interpretations import DoubleDouble
from refpeft.numerics.primitives import erf, fold, round_to, scatter_add, topk

UNIT = Fraction(1, 2**100)
SMALLEST = Fraction(5e-324)


def exact(x) -> list[Fraction]:
    return [Fraction(float(h)) + Fraction(float(e)) for h, e in zip(np.ravel(x.hi), np.ravel(x.lo))]


def draw(shape, seed: int, reach: int = 20) -> DoubleDouble:
    """Random double-doubles over 2 * reach binades."""
    random = np.random.default_rng(seed)
    hi = random.normal(size=shape) * 2.0 ** random.integers(-reach, reach + 1, size=shape)
    return DoubleDouble(hi, hi * random.uniform(-(2.0**-54), 2.0**-54, size=shape))


def worst(got, expected: list[Fraction], scale: list[Fraction] | None = None) -> float:
    """Largest error in units of 2**-100 of the scale (of the value itself, where none is given)."""
    scale = scale or [abs(e) for e in expected]
    return max(float(abs(g - e) / (UNIT * s)) for g, e, s in zip(exact(got), expected, scale) if s)


@pytest.mark.parametrize("reach", [1, 20, 200])
def test_arithmetic_is_good_to_a_hundred_bits(reach):
    """Products, quotients and roots relative to themselves; sums relative to their terms."""
    a, b = draw(400, 1, reach), draw(400, 2, reach)
    x, y = exact(a), exact(b)
    terms = [abs(p) + abs(q) for p, q in zip(x, y)]
    assert worst(a + b, [p + q for p, q in zip(x, y)], terms) <= 1
    assert worst(a - b, [p - q for p, q in zip(x, y)], terms) <= 1
    assert worst(a * b, [p * q for p, q in zip(x, y)]) <= 1
    assert worst(a / b, [p / q for p, q in zip(x, y)]) <= 1
    root = exact(np.sqrt(np.absolute(a)))
    assert max(float(abs(r * r - abs(p)) / (UNIT * abs(p))) for r, p in zip(root, x)) <= 2


def test_cancellation_loses_nothing():
    """What two nearly equal numbers differ by is exact."""
    a = DoubleDouble(np.array([1.0, 1e300]), np.array([2.0**-60, 2.0**900]))
    b = DoubleDouble(np.array([1.0, 1e300]))
    assert exact(a - b) == [Fraction(1, 2**60), Fraction(2) ** 900]


def test_huge_and_tiny_magnitudes_neither_overflow_nor_lose_more_than_the_smallest_number():
    """Splitting a number near the largest must not overflow; a product below the normal numbers errs by half the
    smallest.
    """
    huge = DoubleDouble(np.array([1.7e308, 1e305, -1e303]))
    assert exact(huge * 1.0) == exact(huge)
    assert worst(huge / 3.0, [x / 3 for x in exact(huge)]) <= 1
    random = np.random.default_rng(3)
    a = DoubleDouble(random.uniform(1, 2, 500) * 2.0**-530)
    b = DoubleDouble(random.uniform(1, 2, 500) * 2.0 ** random.integers(-545, -470, 500))
    for got, x, y in zip(exact(a * b), exact(a), exact(b)):
        assert abs(got - x * y) <= SMALLEST * Fraction(501, 1000) + UNIT * abs(x * y)
    tiny = DoubleDouble(np.array([5e-324, 3e-320, 2.0**-1000]))
    for got, x in zip(exact(np.sqrt(tiny)), exact(tiny)):
        assert abs(got * got - x) <= 4 * UNIT * x


def test_error_free_transforms_are_exact():
    """two_sum and two_prod give the very sum and product, up to the ends of the range."""
    random = np.random.default_rng(4)
    a, b = (random.normal(size=300) * 2.0 ** random.integers(-400, 400, 300) for _ in range(2))
    a, b = np.append(a, [1.7e308, 2.0**-500]), np.append(b, [0.5, 1.1])
    for transform, plain in ((two_sum, lambda p, q: p + q), (two_prod, lambda p, q: p * q)):
        s, e = transform(a, b)
        assert [Fraction(x) + Fraction(y) for x, y in zip(s, e)] == [
            plain(Fraction(p), Fraction(q)) for p, q in zip(a, b)
        ]


@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 5), (5, 4)), ((2, 3, 5), (5, 2)), ((2, 1, 3, 4), (3, 4, 2)), ((5,), (5, 3)), ((3, 5), (5,)), ((6,), (6,))],
)
def test_matmul_sums_exactly_enough(left, right):
    """Every shape of np.matmul, relative to the sum of the terms' magnitudes."""
    a, b = draw(left, 5), draw(right, 6)
    objects = [np.array(exact(x), object).reshape(x.shape) for x in (a, b)]
    expected = np.matmul(*objects)
    scale = np.matmul(*(np.abs(o) for o in objects))
    got = a @ b
    assert got.shape == np.shape(expected)
    assert worst(got, list(np.ravel(expected)), list(np.ravel(scale))) <= 4


def test_an_empty_contraction_is_zero():
    """K = 0 gives zeros, m = 0 gives nothing, in the shape that NumPy has."""
    zeros = DoubleDouble(np.zeros((2, 3, 0))) @ DoubleDouble(np.zeros((0, 4)))
    assert zeros.shape == (2, 3, 4)
    assert not np.any(zeros.hi)
    assert (DoubleDouble(np.zeros((0, 3))) @ DoubleDouble(np.zeros((3, 4)))).shape == (0, 4)


def test_sums_of_every_kind_agree_with_rationals():
    """sum over axes, scatter_add with repeated indices, and fold of overlapping windows."""
    x = draw((4, 3, 2), 7)
    table = np.array(exact(x), object).reshape(x.shape)
    for axis in (0, -1, (0, 2), None):
        expected, scale = np.sum(table, axis=axis), np.sum(np.abs(table), axis=axis)
        assert worst(np.sum(x, axis=axis), list(np.ravel(expected)), list(np.ravel(scale))) <= 4
    index = np.array([1, 1, 0, 1])
    expected = scatter_add(table, index, 3)
    assert worst(scatter_add(x, index, 3), list(np.ravel(expected)), [Fraction(2) ** 22 * 4] * expected.size) <= 4
    patches = draw((2, 2, 2, 2), 8)
    expected = fold(np.array(exact(patches), object).reshape(patches.shape), (3, 3), (1, 1), (1, 1))
    assert worst(fold(patches, (3, 3), (1, 1), (1, 1)), list(np.ravel(expected)), [Fraction(2) ** 22 * 4] * 9) <= 4


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "sin", "cos", "erf"])
def test_elementary_functions_are_mpmaths(name):
    """To a hundred bits, on arrays and on single numbers."""
    x = DoubleDouble(np.array([0.3, 1.0, 2.5, 5.0]), np.array([1e-18, 0.0, -1e-17, 0.0]))
    function = erf if name == "erf" else getattr(np, name)
    with mpmath.workprec(200):
        truths = [getattr(mpmath, name)(mpmath.mpf(h) + mpmath.mpf(e)) for h, e in zip(x.hi, x.lo)]
        for got in (function(x), [function(x[i]) for i in range(4)]):
            for g, truth in zip(got, truths):
                assert abs(mpmath.mpf(float(g.hi)) + mpmath.mpf(float(g.lo)) - truth) <= mpmath.mpf(2) ** -100 * max(
                    1, abs(truth)
                )
    assert function(DoubleDouble(np.zeros((0, 2)))).shape == (0, 2)


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e308, 1000.0])


@pytest.mark.parametrize(
    "name",
    ["add", "subtract", "multiply", "divide", "maximum", "minimum", "sqrt", "exp", "log", "tanh", "sin", "absolute"],
)
def test_special_values_are_numpys(name):
    """Infinities, NaN, zeros and overflow come out as in plain float64, without a warning."""
    function = getattr(np, name)
    with np.errstate(all="ignore"):
        pairs = (SPECIAL[:, None] + 0 * SPECIAL, SPECIAL + 0 * SPECIAL[:, None])
        pairs = (np.repeat(SPECIAL, SPECIAL.size), np.tile(SPECIAL, SPECIAL.size)) if function.nin == 2 else (SPECIAL,)
        expected = function(*pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = function(*map(DoubleDouble, pairs))
    special = ~np.isfinite(expected) | (np.abs(expected) < 2)
    ulp = np.spacing(np.where(special & np.isfinite(expected), np.abs(expected), 1.0))
    same = (
        (got.hi == expected)
        | (np.isnan(got.hi) & np.isnan(expected))
        | (np.abs(got.hi - np.nan_to_num(expected)) <= ulp)
    )
    assert np.all(same | ~special)
    assert not np.any(got.lo[~np.isfinite(got.hi)])


def test_comparisons_see_the_low_part():
    """Numbers that agree in hi are told apart by lo; order, extremes and selection follow."""
    x = DoubleDouble(np.ones(3), np.array([0.0, 2.0**-60, -(2.0**-60)]))
    assert list(x > 1.0) == [False, True, False]
    assert list(x == 1.0) == [True, False, False]
    assert exact(np.max(x)) == [1 + Fraction(1, 2**60)]
    assert exact(np.min(x, axis=0)) == [1 - Fraction(1, 2**60)]
    assert list(topk(x, 3)) == [1, 0, 2]


def test_rounding_of_a_tie_looks_at_the_low_part():
    """hi on a tie of the target goes where lo points, else to even."""
    tie = 1 + 2.0**-8
    x = DoubleDouble(np.array([tie, tie, tie, -tie]), np.array([0.0, 2.0**-70, -(2.0**-70), -(2.0**-70)]))
    assert list(round_to(x, "bfloat16").hi) == [1.0, 1 + 2.0**-7, 1.0, -1 - 2.0**-7]
