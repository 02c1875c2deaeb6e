"""The rule of ``solve``: from the backward error of Gaussian elimination, through the inverse.

Elimination gives the columns of X with (A + F) x = b, |F| <= gamma_3n |L| |U| (Higham 2002, theorem 9.4), so that
|F| <= gamma_3n n g max|A|, where the growth factor g is the largest element that comes up over the largest of A, and the
multipliers are at most one. Partial pivoting admits g = 2**(n - 1) and is never seen near it; admitted is every solver with
g <= n. That is declared, not proven.

Two matrices that both lie within D = |I - C A| + |C| |F| of having C for their inverse differ, in what they give, by

    |x' - x| <= (I - D)^-1 |C| (|F| |x| + e_b)        (I - D)^-1 V <= V + D 1 max V / (1 - |D|_inf).
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.bounded.array import Bounded
from refpeft.numerics.bounded.upward import leading, magnitude, up
from refpeft.numerics.doubledouble import DoubleDouble
from refpeft.numerics.formats import FLOAT64
from refpeft.numerics.primitives import solve


@Bounded.rule("solve")
def _(a, b):
    """Elimination of A X = B, or the product of B with the inverse found so; infinite where A + F may be singular."""
    value = solve(a.value, b.value)
    if not value.size:
        return a.stored(value, np.zeros(value.shape))
    with np.errstate(all="ignore"):
        return _bounded(a, b, value)


def _bounded(a: Bounded, b: Bounded, value) -> Bounded:
    model, n = a.model, a.shape[-1]
    largest = np.max(a.reach, axis=(-2, -1), keepdims=True)
    passing = 1.0 if model.probable else float(n * n)
    backward = np.broadcast_to(up(_coefficient(model, n) * passing * largest, n), a.shape)
    inverse, apart = _inverse(a, up(a.error + backward))
    terms = _through(apart, up(inverse @ b.reach, n))
    inherited = _through(apart, up(inverse @ up(b.error + a.error @ magnitude(value), n), n))
    own = _through(apart, up(inverse @ up(backward @ terms, n), n)) + model.accumulate(n) * terms
    highest = 1 + np.max(terms, axis=-2, keepdims=True)
    smallest = n * (1 + np.sum(_through(apart, inverse), axis=-1, keepdims=True)) * (1 + largest) * highest
    result = a.stored(value, inherited, up(own + smallest * model.underflow(n), n), b._factor)
    finite = (up(passing * largest * highest, n) <= model.largest_partial) & np.isfinite(result.error)
    result.error = np.where(finite, result.error, np.inf)
    return result


def _coefficient(model, n: int) -> float:
    """gamma_3n, with operands of products rounded where that is declared."""
    operands = model.precision.operands
    return model.accumulate(3 * n) + (3 * operands.unit if operands is not None else 0.0)


def _inverse(a: Bounded, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|C| for an approximate inverse C in float64, and D, within which every matrix as near as ``moved`` has it."""
    n, whole = a.shape[-1], leading(a.value)
    rest = np.abs(a.value.lo) if isinstance(a.value, DoubleDouble) else 0.0
    identity = np.eye(n)
    c = solve(whole, np.broadcast_to(identity, whole.shape))
    magnitudes = np.abs(c)
    evaluated = (n + 2) * FLOAT64.unit * (magnitudes @ np.abs(whole) + identity)
    return magnitudes, up(np.abs(identity - c @ whole) + evaluated + magnitudes @ up(moved + rest, n), n)


def _through(apart: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A bound on (I - D)^-1 V for V >= 0; infinite unless the rows of D sum to less than 1."""
    sums = up(np.sum(apart, axis=-1, keepdims=True), apart.shape[-1])
    norm = np.max(sums, axis=-2, keepdims=True)
    bound = up(v + sums * np.max(v, axis=-2, keepdims=True) / (1 - norm), apart.shape[-1])
    return np.where(norm < 1, bound, np.inf)
