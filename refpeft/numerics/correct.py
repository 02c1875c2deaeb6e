"""Correct rounding of W + s B A: the one number of a format that is nearest to the exact value, ties to even.

Each element is decided by the cheapest of three means that can, after Shewchuk's adaptive predicates (1997):

1. float64 and a bound on its error: both ends of the interval round to the same number;
2. an expansion, the sum carried in three float64 by error-free transforms (Ogita, Rump and Oishi 2005, "Accurate sum
   and dot product", algorithm SumK with K = 3), and the same test with an interval about 2**-100 times as wide;
3. rational arithmetic, for exact ties that the expansion cannot hold and for exponents that error-free transforms don't
   survive.

Rounding is monotone, so an interval whose ends round alike has one answer, and no step rounds twice: an end that lies
between two float64 is rounded to odd first (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums:
proved algorithms using rounding to odd"), which keeps it on its side of every tie.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from refpeft.numerics.doubledouble import two_prod, two_sum
from refpeft.numerics.formats import FLOAT64, Format, round_to_format

_BLOCK = 1 << 15
_UNIT = FLOAT64.unit
_NO_EXPONENT = 1 << 14


def round_update(weight, a, b, scaling: float, format: Format) -> np.ndarray:
    """The exact W + s B A, rounded once to ``format``.

    Parameters
    ----------
    weight : (o, i)
        Any of the floating-point dtypes; so are ``a`` and ``b``, each its own.
    a : (r, i)
    b : (o, r)
    scaling : float
        s, an exact float64.
    format : Format

    Returns
    -------
    (o, i) float64
        Numbers of ``format``; infinite where the exact value rounds beyond the largest. Where NaN or infinity takes
        part, what float64 arithmetic gives. The sign of an exact zero is not specified.
    """
    weight, a, b = (np.asarray(x).astype(np.float64) for x in (weight, a, b))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        value = weight + scaling * (b @ a)
        rounded, high = (round_to_format(end, format) for end in _interval(value, weight, a, b, scaling))
        finite = np.isfinite(weight) & np.isfinite(b).all(axis=1)[:, None] & np.isfinite(a).all(axis=0)
        undecided = np.argwhere(finite & (rounded != high))
        rounded = np.where(finite, rounded, round_to_format(value, format))
        _settle(rounded, undecided, weight, a, b, scaling, format)
    return rounded


def round_fraction(exact: Fraction, format: Format) -> float:
    """``exact`` rounded to nearest in ``format``, ties to even, infinite beyond the largest number."""
    if exact == 0:
        return 0.0
    exponent = _floor_log2(abs(exact))
    quantum = Fraction(2) ** (max(exponent, format.emin) - format.precision + 1)
    nearest = round(abs(exact) / quantum) * quantum
    return (-1.0 if exact < 0 else 1.0) * (float(nearest) if nearest <= Fraction(format.max) else np.inf)


def _floor_log2(positive: Fraction) -> int:
    estimate = positive.numerator.bit_length() - positive.denominator.bit_length()
    return estimate if Fraction(2) ** estimate <= positive else estimate - 1


def _interval(value, weight, a, b, scaling):
    """Two float64 with the exact result between them: Higham (2002), section 3.1, and room for their own rounding."""
    count = a.shape[0] + 8
    terms = np.abs(weight) + abs(scaling) * (np.abs(b) @ np.abs(a))
    radius = count * _UNIT / (1 - count * _UNIT) * terms + count * max(1.0, abs(scaling)) * FLOAT64.subnormal
    return value - radius, value + radius


def _settle(rounded, at, weight, a, b, scaling, format) -> None:
    """Decide the elements at the indices ``at`` by expansion, the rest of them exactly."""
    for start in range(0, len(at), _BLOCK):
        row, column = at[start : start + _BLOCK].T
        w, left, right = weight[row, column], b[row].T, a[:, column]
        hi, low, high, sure = _expansion(w, left, right, scaling)
        low, high = _rounded(hi, low, format), _rounded(hi, high, format)
        rounded[row, column] = low
        for k in np.flatnonzero((low != high) | ~sure | ~_survives(w, left, right, scaling)):
            rounded[row[k], column[k]] = round_fraction(_exact(w[k], left[:, k], right[:, k], scaling), format)


def _expansion(w, left, right, scaling):
    """(hi, low, high, sure) with the exact w + s sum(left * right, axis=0) between hi + low and hi + high.

    low and high are rounded to odd. Where ``sure``, |rest| <= |hi| / 8, so that the boundaries of rounding lie at even
    multiples of rest's last place from hi, and neither end has changed sides of one.
    """
    dot = _Cascade(w.shape)
    for p, e in (two_prod(x, y) for x, y in zip(left, right)):
        dot.add(p)
        dot.add(e)
    total = _Cascade(w.shape)
    first, second, third = dot.parts
    for part in (w, *two_prod(scaling, first), *two_prod(scaling, second), scaling * third):
        total.add(part)
    slack = total.lost + abs(scaling) * (dot.lost + _UNIT * np.abs(third))
    first, second, third = total.parts
    second, third = two_sum(second, third)
    hi, rest = two_sum(first, second)
    rest, tail = two_sum(rest, third)
    slack = np.where(slack > 0, 2 * (slack + _UNIT * np.abs(tail)), 0.0)
    sure = (8 * np.abs(rest) <= np.abs(hi)) | ((tail == 0) & (slack == 0))
    return hi, _odd(rest, tail - slack), _odd(rest, tail + slack), sure


class _Cascade:
    """A running sum in three float64: the first two lose nothing, and ``lost`` bounds what the third does.

    Attributes
    ----------
    parts : list of three float64 arrays
        They overlap; the sum is their sum.
    """

    def __init__(self, shape):
        self.parts = [np.zeros(shape) for _ in range(3)]
        self.count, self.reach = 0, np.zeros(shape)

    def add(self, term) -> None:
        """Add an array of the same shape."""
        for level in range(2):
            self.parts[level], term = two_sum(self.parts[level], term)
        self.parts[2] = self.parts[2] + term
        self.reach = self.reach + np.abs(term)
        self.count += 1

    @property
    def lost(self) -> np.ndarray:
        """At least |sum of parts - exact sum|: adding to the third part errs by half an ulp of ``reach`` at most."""
        return 2 * self.count * _UNIT * self.reach


def _rounded(hi, rest, format: Format) -> np.ndarray:
    """The exact hi + rest, rounded once to ``format``."""
    return hi + rest if format.precision >= FLOAT64.precision else round_to_format(_odd(hi, rest), format)


def _odd(a, b) -> np.ndarray:
    """a + b rounded to odd: of the two float64 around an inexact sum, the one with an odd significand."""
    s, t = two_sum(a, b)
    even = s.view(np.int64) & 1 == 0
    return np.where(even & (t != 0), np.nextafter(s, np.copysign(np.inf, t)), s)


def _survives(w, left, right, scaling) -> np.ndarray:
    """Where error-free transforms hold: no term's lowest bit below float64's last, no splitting near overflow."""
    low_left, high_left = _exponents(left)
    low_right, high_right = _exponents(right)
    low, high = _exponents(np.full((1, *w.shape), scaling))
    largest = np.frexp(w)[1]
    lowest = low_left + low_right + low - 3 * FLOAT64.precision
    dot = high_left + high_right + len(left).bit_length()
    highest = np.max([high_left, high_right, high, dot, dot + high, largest], axis=0)
    return (lowest >= -1074) & (highest <= 960)


def _exponents(x):
    """Smallest and largest exponent over the nonzero elements of each column; zero where there are none."""
    exponent = np.frexp(x)[1]
    lowest = np.min(exponent, axis=0, initial=_NO_EXPONENT, where=x != 0)
    highest = np.max(exponent, axis=0, initial=-_NO_EXPONENT, where=x != 0)
    return np.where(lowest < _NO_EXPONENT, lowest, 0), np.where(lowest < _NO_EXPONENT, highest, 0)


def _exact(w, left, right, scaling) -> Fraction:
    return Fraction(w) + Fraction(scaling) * sum(Fraction(x) * Fraction(y) for x, y in zip(left, right))
