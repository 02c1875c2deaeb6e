"""The discrete Fourier transform: what ``real_ifft2`` and ``circular_matmul`` mean in double-double and where they are exact.

In double-double each axis is taken apart by the prime factors of its length (Cooley and Tukey 1965), so that a long axis costs
little; the roots of unity come from mpmath.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from refpeft.numerics.doubledouble import DoubleDouble
from refpeft.numerics.exact import Exact, Inexact, check_sum, contracted, quantum_of
from refpeft.numerics.primitives import circular_matmul, real_ifft2


def prime_factors(n: int) -> list[int]:
    """The primes whose product is ``n``, the smallest first; none of 1."""
    for p in range(2, math.isqrt(n) + 1):
        if n % p == 0:
            return [p, *prime_factors(n // p)]
    return [n] if n > 1 else []


@DoubleDouble.rule("real_ifft2")
def _(x):
    """One axis after the other, every operation in double-double."""
    if not x.size:
        return x
    re, im = along_last(x, DoubleDouble(np.zeros(x.shape)))
    re, _ = along_last(_turned(re), _turned(im))
    return _turned(re) / float(x.shape[-2] * x.shape[-1])


@DoubleDouble.rule("circular_matmul")
def _(a, b):
    """The inverse transform of the product of the spectra, every operation in double-double."""
    n = a.shape[-1]
    if not a.size or not b.size:
        return DoubleDouble(circular_matmul(a.hi, b.hi))
    (x, xi), (y, yi) = ([_to_front(part) for part in along_last(v, DoubleDouble(np.zeros(v.shape)))] for v in (a, b))
    re, im = x @ y - xi @ yi, x @ yi + xi @ y
    re, _ = along_last(_to_back(re), -_to_back(im))
    return re / float(n)


def along_last(re, im):
    """sum over j of x[j] w**(j k), w = exp(2 pi i / n), for complex x = re + i im along the last axis, n of its elements.

    With n = r m and j = r j2 + j1: m elements apart by j1 first, then r of these together, each turned by w**(j1 k2).
    """
    lead, n = re.shape[:-1], re.shape[-1]
    if n == 1:
        return re, im
    r = prime_factors(n)[0]
    m = n // r
    re, im = along_last(*(_turned(x.reshape(*lead, m, r)) for x in (re, im)))
    cos, sin = _roots(n, np.multiply.outer(np.arange(r), np.arange(m)))
    re, im = re * cos - im * sin, re * sin + im * cos
    cos, sin = _roots(r, np.multiply.outer(np.arange(r), np.arange(r)))
    re, im = cos @ re - sin @ im, cos @ im + sin @ re
    return re.reshape(*lead, n), im.reshape(*lead, n)


def _to_front(x):
    """The last axis before the two of the matrices."""
    return x.transpose(*range(x.ndim - 3), x.ndim - 1, x.ndim - 3, x.ndim - 2)


def _to_back(x):
    """The axis before the two of the matrices as the last."""
    return x.transpose(*range(x.ndim - 3), x.ndim - 2, x.ndim - 1, x.ndim - 3)


def _turned(x):
    return x.transpose(*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)


def _roots(n: int, powers: np.ndarray) -> tuple[DoubleDouble, DoubleDouble]:
    """Cosine and sine of 2 pi k / n for an array of k."""
    cos, sin = (DoubleDouble(hi[powers % n], lo[powers % n]) for hi, lo in _circle(n))
    return cos, sin


@functools.lru_cache(maxsize=64)
def _circle(n: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(hi, lo) of the cosines and of the sines of n equal steps around the circle."""
    import mpmath

    with mpmath.workprec(140):
        around = [[f(mpmath.mpf(2 * k) / n) for k in range(n)] for f in (mpmath.cospi, mpmath.sinpi)]
        return tuple(
            (np.array([float(v) for v in values]), np.array([float(v - float(v)) for v in values])) for values in around
        )


@Exact.rule("real_ifft2")
def _(x):
    """Exact where the sides are powers of two and each frequency is a multiple of a quarter of its side: then every root of unity
    that meets a number other than zero is 1, i, -1 or -i, whatever the order of the factors.
    """
    m, n = x.shape[-2:]
    if not x.size:
        return x
    if np.any(x.value):
        if (m & (m - 1)) or (n & (n - 1)):
            raise Inexact("real_ifft2: a side is not a power of two.")
        quarters = np.logical_and.outer(4 * np.arange(m) % m == 0, 4 * np.arange(n) % n == 0)
        if np.any(x.value[..., ~quarters]):
            raise Inexact("real_ifft2: a frequency is not a multiple of a quarter of its side.")
    result = x.rebuild(real_ifft2(x.value))
    total = np.broadcast_to(np.sum(np.abs(x.value), axis=(-2, -1), keepdims=True), x.shape)
    quantum = np.broadcast_to(np.min(quantum_of(x.value), axis=(-2, -1), keepdims=True), x.shape)
    check_sum("real_ifft2", total, quantum, x.precision)
    return contracted("real_ifft2", result, total / (m * n), quantum - int(math.log2(m * n)))


@Exact.rule("circular_matmul")
def _(a, b):
    """Exact where at most four elements go around, whose roots of unity are 1, i, -1 and -i, or where one side is zero."""
    result = a.rebuild(circular_matmul(a.value, b.value))
    if not np.any(a.value) or not np.any(b.value):
        return a.rebuild(np.zeros(result.shape))
    n = result.shape[-1]
    if n not in (1, 2, 4):
        raise Inexact("circular_matmul: neither 1, 2 nor 4 elements go around.")
    sizes = (np.sum(np.abs(x.value), axis=-1) for x in (a, b))
    left, right = (np.min(quantum_of(x.value), axis=(-2 - k, -1), keepdims=True) for k, x in ((0, a), (1, b)))
    total = np.broadcast_to(np.expand_dims(2 * n * np.matmul(*sizes), -1), result.shape)
    return contracted("circular_matmul", result, total, np.broadcast_to(left + right - n // 2, result.shape))
