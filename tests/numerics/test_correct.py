"""Correct rounding of W + s B A: the nearest number of the format, ties to even, whatever the numbers are."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from refpeft.numerics import correct
from refpeft.numerics.correct import round_fraction, round_update
from refpeft.numerics.formats import FLOAT16, FLOAT32, FLOAT64, FORMATS, round_to_format, store

RANK = 4
ELEMENTS = 1000
every_format = pytest.mark.parametrize("format", FORMATS.values(), ids=str)


def as_integer(number: float, format) -> int:
    """Position of a finite number among those of its format, counted from zero."""
    scale = max(format.emin, int(np.frexp(number)[1]) - 1) if number else format.emin
    steps = abs(Fraction(number)) / Fraction(2) ** (scale - format.precision + 1)
    assert steps.denominator == 1, f"{number!r} is no number of {format}"
    return int(steps) + (scale - format.emin) * 2 ** (format.precision - 1)


def from_integer(position: int, format) -> Fraction:
    """The number at a position; one beyond the largest gives the next power of two."""
    binade, half = 2 ** (format.precision - 1), max(0, position // 2 ** (format.precision - 1) - 1)
    steps = position - half * binade
    return Fraction(steps) * Fraction(2) ** (format.emin + half - format.precision + 1)


def assert_nearest(got: float, exact: Fraction, format) -> None:
    """Neither neighbour in the format is nearer, and of two as near the one with an even significand came."""
    magnitude = abs(exact)
    assert not exact or got == 0 or (got > 0) == (exact > 0)
    top = as_integer(format.max, format) + 1
    position = top if np.isinf(got) else as_integer(abs(got), format)
    distance = abs(from_integer(position, format) - magnitude) if position < top or magnitude < 2 * format.max else 0
    for other in (position - 1, position + 1):
        if 0 <= other <= top:
            apart = abs(from_integer(other, format) - magnitude)
            assert distance < apart or (distance == apart and position % 2 == 0), (got, float(exact))


def normal(random, format):
    """Numbers of a trained model's size."""
    return random.normal(size=(ELEMENTS, 1)), random.normal(size=(ELEMENTS, RANK)), random.normal(size=(RANK, 1)), 0.1


def wide(random, format):
    """Exponents all over the format."""
    reach = format.emax // 4

    def draw(*shape):
        return random.normal(size=shape) * 2.0 ** random.integers(-reach, reach + 1, size=shape)

    return draw(ELEMENTS, 1), draw(ELEMENTS, RANK), draw(RANK, 1), 1.7


def ties(random, format):
    """W odd, plus half an ulp, plus or minus next to nothing or nothing: exact ties and their closest neighbours."""
    half = 2.0**-format.precision
    w = 1.0 + 2 * half * random.integers(0, 2 ** (format.precision - 1), size=(ELEMENTS, 1))
    least = max(format.subnormal, 2.0**-300)
    b = np.zeros((ELEMENTS, RANK))
    b[:, 0] = random.choice([-half, half, 3 * half], size=ELEMENTS)
    b[:, 1] = random.choice([-least, 0.0, 0.0, least], size=ELEMENTS)
    return w, b, np.ones((RANK, 1)), 1.0


def cancelling(random, format):
    """W against the update's own rounding, so that its leading bits vanish."""
    b, a = (store(random.normal(size=s), format) for s in ((ELEMENTS, RANK), (RANK, 1)))
    return -store(0.3 * (b.astype(float) @ a.astype(float)), format).astype(float), b, a, 0.3


def subnormal(random, format):
    """Results and products around and below the smallest normal number."""
    w = (
        random.normal(size=(ELEMENTS, 1))
        * format.tiny
        * 2.0 ** random.integers(-format.precision, 2, size=(ELEMENTS, 1))
    )
    b = random.normal(size=(ELEMENTS, RANK)) * format.tiny
    return w, b, random.normal(size=(RANK, 1)), 0.5


def overflowing(random, format):
    """The largest number plus less than, exactly and more than half an ulp: only the first stays finite."""
    w = np.full((ELEMENTS, 1), format.max) * random.choice([-1.0, 1.0], size=(ELEMENTS, 1))
    half = 2.0 ** (format.emax - format.precision)
    b = np.zeros((ELEMENTS, RANK))
    b[:, 0] = half * random.choice([-1.0, 1.0, 0.5, 1.5], size=ELEMENTS)
    b[:, 1] = random.choice([-1.0, 0.0, 1.0], size=ELEMENTS)
    return w, b, np.ones((RANK, 1)), 1.0


@every_format
@pytest.mark.parametrize("draw", [normal, wide, ties, cancelling, subnormal, overflowing], ids=lambda f: f.__name__)
def test_every_element_is_the_nearest_number(draw, format):
    """Held against rational arithmetic and the format's own neighbours, element by element."""
    w, b, a, scaling = draw(np.random.default_rng(0), format)
    w, b, a = (store(x, format).astype(float) for x in (w, b, a))
    got = round_update(w, a, b, scaling, format)[:, 0]
    for k in range(ELEMENTS):
        products = (Fraction(x) * Fraction(y) for x, y in zip(b[k], a[:, 0]))
        exact = Fraction(w[k, 0]) + Fraction(scaling) * sum(products)
        assert_nearest(got[k], exact, format)


@pytest.mark.parametrize("format", [f for f in FORMATS.values() if f is not FLOAT16], ids=str)
def test_double_rounding_would_be_seen(format):
    """Among the ties are elements that rounding in float64 first gets wrong; it holds float16's sums exactly."""
    w, b, a, scaling = ties(np.random.default_rng(0), format)
    w, b, a = (store(x, format).astype(float) for x in (w, b, a))
    if format is FLOAT64:
        twice = w + scaling * np.sum(b, axis=1, keepdims=True)
    else:
        twice = round_to_format(w + scaling * (b @ a), format)
    assert np.any(twice != round_update(w, a, b, scaling, format))


@every_format
def test_rational_numbers_round_as_float64_casts_do(format):
    """On float64 values, exact by themselves, it is the rounding of `round_to_format`."""
    random = np.random.default_rng(1)
    values = random.normal(size=500) * 2.0 ** random.integers(-170, 140, size=500)
    values = np.concatenate([values, [0.0, format.max, -format.max, format.subnormal / 2, format.subnormal * 0.75]])
    expected = round_to_format(values, format)
    np.testing.assert_array_equal([round_fraction(Fraction(v), format) for v in values], expected)


def test_rational_numbers_round_to_float64_as_python_divides():
    """CPython's division of integers is correctly rounded, subnormals included."""
    random = np.random.default_rng(2)
    for _ in range(500):
        p, q = (int(random.integers(1, 2**62)) for _ in range(2))
        exact = Fraction(p, q) * Fraction(2) ** int(random.integers(-1080, 960))
        assert round_fraction(exact, FLOAT64) == exact.numerator / exact.denominator


def test_beyond_the_largest_number_lies_infinity():
    """From half an ulp beyond it on, with the sign kept; so does a negative underflow keep it."""
    edge = Fraction(FLOAT16.max) + Fraction(16)
    assert round_fraction(-edge, FLOAT16) == -np.inf
    assert round_fraction(edge - Fraction(1, 10**30), FLOAT16) == FLOAT16.max
    assert np.signbit(round_fraction(Fraction(-1, 10**30), FLOAT16))


@every_format
def test_infinity_and_nan_go_as_arithmetic_has_it(format):
    """They reach the elements they take part in, and no other."""
    w, a, b = np.ones((3, 3)), np.ones((2, 3)), np.ones((3, 2))
    w[0, 0], a[0, 1], b[1, 0] = np.nan, np.inf, -np.inf
    got = round_update(w, a, b, 1.0, format)
    expected = [[np.nan, np.inf, 3.0], [-np.inf, -np.inf, -np.inf], [3.0, np.inf, 3.0]]
    np.testing.assert_array_equal(got, expected)


def test_storage_of_base_and_factors_may_differ():
    """A bfloat16 base takes up float32 factors in one rounding: peft's default merge."""
    random = np.random.default_rng(3)
    format = FORMATS["bfloat16"]
    w = store(random.normal(size=(20, 30)), format)
    a, b = (store(random.normal(size=s), FLOAT32) for s in ((4, 30), (20, 4)))
    got = round_update(w, a, b, 2.0, format)
    for o, i in np.ndindex(w.shape):
        products = (Fraction(float(x)) * Fraction(float(y)) for x, y in zip(b[o], a[:, i]))
        assert got[o, i] == round_fraction(Fraction(float(w[o, i])) + 2 * sum(products), format)


def test_no_rank_and_no_element_are_fine():
    """Rank 0 gives W; an empty W gives an empty result."""
    w = np.float32([[0.1, -2.0]])
    np.testing.assert_array_equal(round_update(w, np.zeros((0, 2)), np.zeros((1, 0)), 1.0, FLOAT32), w)
    assert round_update(w[:0], np.ones((2, 2)), np.zeros((0, 2)), 1.0, FLOAT64).shape == (0, 2)


@pytest.mark.parametrize("format", [FLOAT32, FLOAT64], ids=str)
def test_few_elements_need_rational_arithmetic(format, monkeypatch):
    """None of a trained layer's size does, exact ties with representable products neither: speed rests on that."""
    asked = []
    monkeypatch.setattr(correct, "_exact", lambda *a: asked.append(a) or Fraction(0))
    for draw in (normal, ties):
        w, b, a, scaling = draw(np.random.default_rng(4), format)
        w, b, a = (store(x, format).astype(float) for x in (w, b, a))
        round_update(w, a, b, scaling, format)
    assert asked == []
