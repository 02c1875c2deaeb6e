"""C3A: circular convolution adaptation (Chen et al. 2024, arXiv:2407.19342).

The update is a matrix of circulant blocks, each given by one kernel of b numbers:

    delta[p b + s, q b + t] = w[p, q, (t - s) mod b]        w (o / b, i / b, b)

so that b parameters fill a block of b squared, of rank up to b.
"""

from __future__ import annotations

import math

import numpy as np

from refpeft.numerics.primitives import positions, scatter_add, take
from refpeft.ops._update import update


@update("kernel[p,q,b]", where="o = p*b, i = q*b")
def delta(kernel, *, normalised: bool = False):
    """delta[p b + s, q b + t] = w[p, q, (t - s) mod b].

    Parameters
    ----------
    kernel : (o / b, i / b, b)
        w.
    normalised : bool
        Divide by i, as the authors' code and peft do.
    """
    p, q, b = kernel.shape
    blocks = take(kernel, _shift(kernel), axis=2)
    filled = np.transpose(blocks, (0, 2, 1, 3)).reshape(p * b, q * b)
    return filled / (q * b) if normalised and q * b else filled


@delta.vjp
def _(ddelta, kernel, *, normalised=False):
    """dw[p,q,m] adds up the b elements of ddelta that w[p,q,m] fills."""
    p, q, b = kernel.shape
    u = ddelta / (q * b) if normalised and q * b else ddelta
    by_place = np.transpose(u.reshape(p, b, q, b), (1, 3, 0, 2))
    return np.transpose(scatter_add(by_place, _shift(kernel), b), (1, 2, 0))


def _shift(kernel):
    """(t - s) mod b for all s and t."""
    place = positions(kernel, 2)
    return np.remainder(np.expand_dims(place, 0) - np.expand_dims(place, 1), kernel.shape[2])


linear = delta.linear("c3a.linear", sizes={"b": (3, 1, 2, 4, 5, 8), "p": (2, 1, 3), "q": (2, 1, 3)})
merge = delta.merge("c3a.merge", sizes={"b": (3, 1, 2, 4, 5, 8), "p": (2, 1, 3), "q": (2, 1, 3)})
unmerge = delta.unmerge


def init(random: np.random.Generator, o: int, i: int, *, block: int) -> dict[str, np.ndarray]:
    """Xavier-uniform kernels, as in the authors' code: training does not begin at the base model exactly."""
    bound = math.sqrt(6 / (o + i))
    return {"kernel": random.uniform(-bound, bound, (o // block, i // block, block))}


def count(o: int, i: int, *, block: int) -> int:
    """Trainable parameters: o i / b."""
    return o * i // block
