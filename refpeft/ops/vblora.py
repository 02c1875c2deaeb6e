"""VB-LoRA: factors assembled from one bank of vectors (Li, Han and Ji 2024, arXiv:2405.15179).

Each stretch of v entries of A's rows and B's columns is a mixture of k vectors of a bank that all layers share: those with
the largest logits, weighted by a softmax over these k alone,

    stretch = sum_j softmax(top_k(logits))_j bank[index_j]      W' = W + B A,  A (r, i),  B (o, r),  i = m v,  o = n v

Nothing scales the update. The bank is near zero at the start, not the update.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import positions, scatter_add, take, topk
from refpeft.ops._factors import factors

SIZES = {
    "r": (2, 1, 3),
    "m": (2, 1, 3),
    "n_out": (2, 1, 3),
    "length": (2, 1, 3),
    "bank": (3, 2, 1, 5),
    "chosen": (2, 1, 3),
}
GAP = 2.0**-5
"""Neighbouring logits of a problem are this far apart, relative to the larger, so that no rounding changes their order."""


@factors(
    "logits_a[r,m,bank] logits_b[n_out,r,bank] vectors[bank,length]",
    where="i = m*length, o = n_out*length, chosen >= 1, chosen <= bank",
)
def delta(logits_a, logits_b, vectors, *, chosen: int):
    """A and B, each stretch a mixture of the ``chosen`` vectors with the largest logits.

    Parameters
    ----------
    logits_a : (r, m, bank)
        For stretch m of row r of A.
    logits_b : (n, r, bank)
        For stretch n of column r of B.
    vectors : (bank, v)
        The bank, shared by all layers.
    chosen : int
        k, from 1 to the size of the bank.
    """
    a, b = _mixture(logits_a, vectors, chosen)[0], _mixture(logits_b, vectors, chosen)[0]
    (r, m, v), n = a.shape, b.shape[0]
    return a.reshape(r, m * v), b.transpose(0, 2, 1).reshape(n * v, r)


@delta.vjp
def _(da, db, logits_a, logits_b, vectors, *, chosen):
    """The bank's gradient is the sum of what comes from A and from B."""
    (r, m, _), n, v = logits_a.shape, logits_b.shape[0], vectors.shape[1]
    dlogits_a, from_a = _mixture_vjp(da.reshape(r, m, v), logits_a, vectors, chosen)
    dlogits_b, from_b = _mixture_vjp(db.reshape(n, v, r).transpose(0, 2, 1), logits_b, vectors, chosen)
    return dlogits_a, dlogits_b, from_a + from_b


def _places(logits, chosen):
    """Indices of the largest logits, (*n, k), and their places in the flattened array."""
    index = topk(logits, chosen)
    p, q, bank = logits.shape
    row = positions(logits.reshape(p * q, bank), 0)
    return index, index + bank * row.reshape(p, q, 1)


def _mixture(logits, vectors, chosen):
    """Mixtures (p, q, v), their weights and the vectors in them."""
    index, places = _places(logits, chosen)
    largest = take(logits.reshape(int(np.prod(logits.shape))), places)
    e = np.exp(largest - largest[..., :1])
    weights, picked = e / np.sum(e, axis=-1, keepdims=True), take(vectors, index)
    return np.sum(np.expand_dims(weights, 3) * picked, axis=2), weights, picked


def _mixture_vjp(d, logits, vectors, chosen):
    """dp_j = <d, bank[index_j]>, dlogits = p (dp - <p, dp>) at the chosen places; each vector gathers p_j d."""
    index, places = _places(logits, chosen)
    _, p, picked = _mixture(logits, vectors, chosen)
    d = np.expand_dims(d, 2)
    dp = np.sum(d * picked, axis=3)
    dlargest = p * (dp - np.sum(p * dp, axis=-1, keepdims=True))
    dlogits = scatter_add(dlargest, places, int(np.prod(logits.shape)))
    return dlogits.reshape(logits.shape), scatter_add(np.expand_dims(p, 3) * d, index, vectors.shape[0])


linear = delta.linear("vblora.linear", sizes=SIZES, nonfinite=("x", "weight", "bias"))
merge = delta.merge("vblora.merge", sizes=SIZES, nonfinite=("weight",))
unmerge = delta.unmerge


@linear.makes_valid
@merge.makes_valid
def separated(random, arrays, attributes):
    """No two logits of a stretch so close that rounding, or the order in which equals are taken, could matter."""
    return {name: apart(arrays[name]) for name in ("logits_a", "logits_b")}


@linear.anchors
@merge.anchors
def one_hot(random, arrays, attributes):
    """Logits so far apart that each stretch is one vector."""
    return {
        name: 1024.0 * np.argsort(np.argsort(random.random(arrays[name].shape), axis=-1), axis=-1)
        for name in ("logits_a", "logits_b")
    }


def apart(logits):
    """The logits, each moved up as far as the next smaller of its stretch comes too close."""
    order = np.argsort(logits, axis=-1)
    ascending = np.take_along_axis(logits, order, axis=-1).copy()
    for j in range(1, ascending.shape[-1]):
        below = ascending[..., j - 1]
        ascending[..., j] = np.maximum(ascending[..., j], below + GAP * np.maximum(1, np.abs(below)))
    apart = np.empty_like(logits)
    np.put_along_axis(apart, order, ascending, axis=-1)
    return apart


def vectors(random: np.random.Generator, *, bank: int, length: int) -> dict[str, np.ndarray]:
    """The bank of all layers (bank, length), uniform on [-0.02, 0.02) as in peft; float64."""
    return {"vectors": random.uniform(-0.02, 0.02, (bank, length))}


def init(random: np.random.Generator, o: int, i: int, *, rank: int, bank: int, length: int) -> dict[str, np.ndarray]:
    """What a layer has of its own: logits, normal with deviation 0.1 as in peft.

    Returns
    -------
    dict of str to float64 array
        logits_a (rank, i / length, bank) and logits_b (o / length, rank, bank).
    """
    return {
        "logits_a": random.normal(0, 0.1, (rank, i // length, bank)),
        "logits_b": random.normal(0, 0.1, (o // length, rank, bank)),
    }


def count(o: int, i: int, *, rank: int, bank: int, length: int) -> int:
    """Trainable parameters of one layer with a bank of its own: bank (r (i + o) / v + v)."""
    return bank * (rank * (i // length + o // length) + length)


def stored(o: int, i: int, *, rank: int, bank: int, length: int, chosen: int) -> int:
    """Numbers to keep after training: k indices and k - 1 weights for each stretch, and the bank."""
    return rank * (i // length + o // length) * (2 * chosen - 1) + bank * length
