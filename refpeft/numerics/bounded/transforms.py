"""The rules of transforms: ``real_ifft2`` from the number of roundings between an element of the spectrum and one of the result.

Every standard algorithm writes y = x[p, q] times roots of unity, summed: each element of the spectrum reaches each one of the
result along one path, which turns it (a complex product, sqrt(2) gamma_2 and the root's own error; Higham 2002, lemma 3.5) and
adds it to others. So an error is at most gamma_c times the sum of all magnitudes, the same for every element of the result:

    |computed - exact| <= gamma_c  sum |x| / (m n)

What differs is c. With e the error of a root of unity in units u, a stage of Cooley and Tukey's algorithm that joins r parts
costs 3 + e for the turns and sqrt(2) (2 r + e) for sums of r complex products, or 1 for a sum and a difference of two. All that
counts twice: for reals packed two by two into complex numbers, and for butterflies that save products (Winograd). The plain sum
over the elements that are not zero, in one step or one axis after the other, costs one rounding a term, and the angle's own. The
larger of these is taken, and the division by m n is added.

Rader's and Bluestein's convolutions, which take the place of a sum over a large prime, pass through numbers larger by up to the
square root of that prime. That they stay within the same bound is declared, not proven: their errors would have to conspire.

``circular_matmul`` multiplies spectra, adds them up and transforms back. In the 2-norm a stage that joins p parts errs by sqrt(p)
times as much, and by Parseval's identity |X| |Y| sums to at most n |x|_2 |y|_2, so that

    |computed - exact| <= gamma_d  sum over k of |a[i, k]|_2 |b[k, j]|_2

with d twice the count of stages so weighted, that of the transform back, 3 for the product and k for the sum; the plain sum of
k n products, of which Cauchy and Schwarz say the same, is covered too.
"""

from __future__ import annotations

import math

import numpy as np

from refpeft.numerics.bounded.array import Bounded
from refpeft.numerics.bounded.upward import up
from refpeft.numerics.fourier import prime_factors
from refpeft.numerics.primitives import circular_matmul, real_ifft2


@Bounded.rule("real_ifft2")
def _(x):
    """Elements may come through in any order, divided by their number before or after."""
    value = real_ifft2(x.value)
    if not x.size:
        return x.rebuild(value, np.zeros(value.shape))
    model, (m, n) = x.model, x.shape[-2:]

    def mean(magnitudes):
        return np.broadcast_to(up(np.sum(magnitudes, axis=(-2, -1), keepdims=True), m * n) / (m * n), x.shape)

    terms, used = mean(x.reach), int(np.max(np.count_nonzero(x.reach, axis=(-2, -1))))
    operands = model.precision.operands
    inherited = mean(x.error) + (4 * operands.unit * terms if operands is not None else 0.0)
    result = x.accumulated(value, inherited, terms, roundings(model, m, n, used), x._factor)
    result.error = np.where(m * n * terms <= model.largest_partial, result.error, np.inf)
    return result


def roundings(model, m: int, n: int, used: int) -> int:
    """c: how many roundings lie between an element of the spectrum and one of the result, at most.

    Parameters
    ----------
    model : RoundingModel
    m, n : int
        The sides.
    used : int
        How many elements of the spectrum are not zero.
    """
    angle, root = math.ceil(6 * math.pi), _root(model)
    plain = used + m + n + 2 * (angle + root)
    return 2 + max(2 * (_stages(m, root) + _stages(n, root)), plain)


def _root(model) -> int:
    """The error of a root of unity in units."""
    return math.ceil(2 * model.precision.elementary_ulps)


def _stages(n: int, root: int, weight=lambda parts: 1.0) -> int:
    """Turns, and sums of products with roots of unity or a sum and a difference, for each prime factor of ``n``."""
    joining = {p: 1 if p == 2 else math.ceil(math.sqrt(2) * (2 * p + root)) for p in prime_factors(n)}
    return sum(3 + root + math.ceil(weight(p) * joining[p]) for p in prime_factors(n))


@Bounded.rule("circular_matmul")
def _(a, b):
    """Normwise around the circle: by spectra, or as a plain sum."""
    value, model = circular_matmul(a.value, b.value), a.model
    k, n = a.shape[-2:]

    def norm(x):
        largest = np.max(x, axis=-1, keepdims=True, initial=0.0)
        shares = np.where(largest > 0, x / np.where(largest > 0, largest, 1.0), 0.0)
        return up(largest[..., 0] * np.sqrt(np.sum(np.square(shares), axis=-1)), n)

    def bound(x, y):
        return np.broadcast_to(np.expand_dims(up(np.matmul(norm(x), norm(y)), k), -1), value.shape)

    terms, operands = bound(a.reach, b.reach), model.precision.operands
    inherited = bound(a.reach, b.error) + bound(a.error, b.magnitude)
    inherited = inherited + (2 * operands.unit * terms if operands is not None else 0.0)
    root = _root(model)
    there, back = 2 * _stages(n, root, math.sqrt), 2 * _stages(n, root)
    result = a.accumulated(value, inherited, terms, max(k * n, k + 2 * there + back + 5), a._factor * b._factor)
    result.error = np.where(n * terms <= model.largest_partial, result.error, np.inf)
    return result
