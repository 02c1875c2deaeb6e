"""Rotations in blocks, learned through skew-symmetric matrices: what OFT, BOFT and PSOFT share.

A skew-symmetric K, Kᵀ = -K, gives a rotation by Cayley's transform. With A = I + K, so that Aᵀ = I - K,

    R = (I + K)(I - K)^-1 = A^-T A        RᵀR = I, det R = 1

for every K, as x A x = ||x||^2 keeps A regular; the two factors commute. K = 0 gives R = I. K is held as the strict upper
triangle k, row by row, and blocks stand in a stack: k (m, b (b - 1) / 2), R (m, b, b).

``variant`` says which function of K it is: ``paper`` the one above; ``peft`` its inverse (I - K)(I + K)^-1, the rotation of
-K; ``neumann`` the sum I + 2 K + 2 K^2 + ... + K^t, the Neumann series of the paper's one cut off as peft does.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from refpeft.numerics.primitives import solve, take
from refpeft.ops._arrays import turned

Variant = Literal["paper", "peft", "neumann"]


def size_of(k) -> int:
    """b, of which k holds b (b - 1) / 2 numbers."""
    return (1 + math.isqrt(1 + 8 * k.shape[-1])) // 2


def rotation(k, variant: Variant, terms: int):
    """R (m, b, b) from k (m, b (b - 1) / 2)."""
    if variant == "neumann":
        return _series(k, terms)
    a = _spread(k, diagonal=1)
    return solve(turned(a), a) if variant == "paper" else solve(a, turned(a))


def to_skew(dr, k, variant: Variant, terms: int):
    """The adjoint of `rotation`: dk from dR.

    R = B^-1 Bᵀ with B = Aᵀ (paper) or A (peft). A change of B is skew, so that R changes by -B^-1 dB (I + R): with
    S = B^-T dR the cotangent of B is -S (I + R)ᵀ, and that of K is the same, or in the paper's variant its negative.
    """
    if variant == "neumann":
        return strict_upper(_to_series(dr, k, terms))
    a = _spread(k, diagonal=1)
    b = turned(a) if variant == "paper" else a
    s, r = solve(turned(b), dr), solve(b, turned(b))
    db = s + s @ turned(r)
    return strict_upper(db if variant == "paper" else -db)


def skew(k):
    """K (m, b, b) from its strict upper triangles."""
    return _spread(k, diagonal=0)


def strict_upper(matrix):
    """M - Mᵀ above its diagonal, row by row: (m, b, b) to (m, b (b - 1) / 2)."""
    size = matrix.shape[-1]
    rows, columns = np.triu_indices(size, 1)
    flat = matrix.reshape(*matrix.shape[:-2], size * size)
    return take(flat, rows * size + columns, axis=-1) - take(flat, columns * size + rows, axis=-1)


def turn(x, r):
    """x R, R block-diagonal: (*n, m b) in rows of m blocks, or of any number where all share one (m = 1)."""
    count, size = r.shape[:2]
    z = _blocks(x, count, size) @ r
    return np.transpose(z, (1, 0, 2)).reshape(x.shape)


def to_rotation(x, dz, r):
    """The adjoint of `turn` in R: sum xᵀ dz over the rows, block by block."""
    count, size = r.shape[:2]
    return turned(_blocks(x, count, size)) @ _blocks(dz, count, size)


def _blocks(x, count: int, size: int):
    return np.transpose(x.reshape(x.size // (count * size), count, size), (1, 0, 2))


def _zero_and_one(k):
    """(m, 1) of each, on k's device."""
    zero = np.pad(k[:, :0], [(0, 0), (0, 1)])
    return zero, np.where(zero == 0.0, 1.0, zero)


def identity(k):
    """As many as there are K."""
    return take(np.concatenate(_zero_and_one(k), axis=-1), np.eye(size_of(k), dtype=int), axis=-1)


def _spread(k, diagonal: int):
    """k above the diagonal, -k below, and 0 or 1 on it: K or I + K, without an addition."""
    size, count = size_of(k), k.shape[-1]
    rows, columns = np.triu_indices(size, 1)
    at = np.zeros((size, size), int)
    at[rows, columns] = 1 + np.arange(count)
    at[columns, rows] = 1 + count + np.arange(count)
    return take(np.concatenate([_zero_and_one(k)[diagonal], k, -k], axis=-1), at, axis=-1)


def coefficients(terms: int) -> tuple[int, ...]:
    """Of K, K^2, ... in peft's series of that many terms: twos, and one for the last; three terms are four there."""
    if terms < 3:
        return (2,) * (terms - 1)
    return (2,) * (max(terms, 4) - 2) + (1,)


def _powers(k, count: int):
    """K, K^2, ..., K^count."""
    powers = [skew(k)]
    while len(powers) < count:
        powers.append(powers[-1] @ powers[0])
    return powers


def _series(k, terms: int):
    factors = coefficients(terms)
    total = identity(k)
    for factor, power in zip(factors, _powers(k, len(factors))):
        total = total + factor * power
    return total


def _to_series(dr, k, terms: int):
    """K^(j+1) = K^j K from the last power back: d(K^j) gets d(K^(j+1)) Kᵀ, and K gets (K^j)ᵀ d(K^(j+1))."""
    factors = coefficients(terms)
    powers = _powers(k, max(len(factors), 1))
    total, d = 0.0 * powers[0], 0.0 * dr
    for j in reversed(range(len(factors))):
        d = d + factors[j] * dr
        if j:
            total, d = total + turned(powers[j - 1]) @ d, d @ turned(powers[0])
    return total + d
