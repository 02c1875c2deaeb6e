"""Uni-LoRA: every entry of every factor is drawn from one short vector (arXiv:2506.00799).

The concatenation of all layers' A and B, D numbers, is P theta with theta of length d: each row of P has one entry that is
not zero, at a random place, and its columns have norm one, so that P is an isometry:

    A[k, l] = theta[index_a[k, l]] / sqrt(c)      B[m, k] = theta[index_b[m, k]] / sqrt(c)      W' = W + B A

with c the number of times that place of theta is used in the whole model. Indices and scales are frozen inputs.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import scatter_add, take
from refpeft.ops._factors import factors

SIZES = {"r": (2, 1, 3), "d": (5, 3, 1, 8)}


@factors("theta[d] index_a: index(d)[r,i] index_b: index(d)[o,r] scale_a[r,i] scale_b[o,r]")
def delta(theta, index_a, index_b, scale_a, scale_b):
    """A = theta[index_a] scale_a, B = theta[index_b] scale_b.

    Parameters
    ----------
    theta : (d,)
        The vector, shared by all layers.
    index_a : (r, i) int64
    index_b : (o, r) int64
    scale_a : (r, i)
    scale_b : (o, r)
    """
    return take(theta, index_a) * scale_a, take(theta, index_b) * scale_b


@delta.vjp
def _(da, db, theta, index_a, index_b, scale_a, scale_b):
    """theta gathers what every place that uses it contributes."""
    through_a = scatter_add(da * scale_a, index_a, theta.shape[0])
    through_b = scatter_add(db * scale_b, index_b, theta.shape[0])
    return through_a + through_b, da * take(theta, index_a), db * take(theta, index_b)


linear = delta.linear("unilora.linear", sizes=SIZES)
merge = delta.merge("unilora.merge", sizes=SIZES)
unmerge = delta.unmerge


def indices(shapes: list[tuple[int, int]], *, rank: int, d: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Indices and scales of a whole model, number for number as peft draws them.

    All places 0 .. d - 1 as often as another, the odd ones chosen without replacement, are shuffled and dealt to A, then B,
    of each layer in turn.

    Parameters
    ----------
    shapes : list of (o, i)
        Of the layers, in the model's order.
    rank, d, seed : int

    Returns
    -------
    list of dict
        For each layer index_a (rank, i), index_b (o, rank) as int64, scale_a and scale_b alike as float64.
    """
    total = sum(rank * (o + i) for o, i in shapes)
    random = np.random.default_rng(seed)
    deck = np.repeat(np.arange(d), total // d)
    if total % d:
        deck = np.concatenate([deck, random.choice(d, size=total % d, replace=False)])
    random.shuffle(deck)
    used = np.bincount(deck, minlength=d)
    scales = np.where(used > 0, 1 / np.sqrt(np.maximum(used, 1)), 0.0)
    layers, at = [], 0
    for o, i in shapes:
        a, b = deck[at : at + rank * i].reshape(rank, i), deck[at + rank * i : at + rank * (i + o)].reshape(o, rank)
        layers.append({"index_a": a, "index_b": b, "scale_a": scales[a], "scale_b": scales[b]})
        at += rank * (i + o)
    return layers


def vector(random: np.random.Generator, *, d: int) -> np.ndarray:
    """theta, uniform on [-0.02, 0.02), as in peft."""
    return random.uniform(-0.02, 0.02, d)


def count(*, d: int) -> int:
    """Trainable parameters of the whole model: d."""
    return d
