"""The rule of ``real_ifft2``: from the number of roundings between an element of the spectrum and one of the result.

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
"""

from __future__ import annotations

import math

import numpy as np

from refpeft.numerics.bounded.array import Bounded
from refpeft.numerics.bounded.upward import up
from refpeft.numerics.fourier import prime_factors
from refpeft.numerics.primitives import real_ifft2


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
    root = math.ceil(2 * model.precision.elementary_ulps)
    angle = math.ceil(6 * math.pi)
    stages = [3 + root + _joining(p, root) for p in prime_factors(m) + prime_factors(n)]
    plain = used + m + n + 2 * (angle + root)
    return 2 + max(2 * sum(stages), plain)


def _joining(parts: int, root: int) -> int:
    """A sum and a difference, or a sum of products with roots of unity."""
    return 1 if parts == 2 else math.ceil(math.sqrt(2) * (2 * parts + root))
