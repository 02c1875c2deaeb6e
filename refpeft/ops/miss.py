"""MiSS: matrix shard sharing (Kang and Yin 2024, arXiv:2409.15371, whose first version is called Bone).

One small matrix D (r, m) is repeated over the whole update, down the columns and, where m < o, along the rows too:

    delta[k, j] = D[j mod r, k mod m]      that is W' = W + B A,  A (r, i) = [I I I ...] cut to i columns,  B (o, r) = Dᵀ tiled

so that the layer adds up the shards of x, r entries each, and multiplies once by D. With m = o it is MiSS, with m < o its
``mini`` form. Nothing scales the update. D is zero at the start.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import positions
from refpeft.ops._factors import factors

SIZES = {"i": (3, 2, 5, 1, 7, 8), "r": (2, 1, 3, 4), "m": (2, 3, 1, 4), "tiles": (1, 2, 3)}


@factors("block[r,m]", where="o = tiles*m")
def delta(weight, block):
    """A = [I I ...], B = Dᵀ tiled.

    Parameters
    ----------
    block : (r, m)
        D; m divides o. Where r does not divide i, the last shard is shorter, as if x were padded with zeros.
    """
    (r, m), tiles = block.shape, weight.shape[0] // max(1, block.shape[1])
    return _shards(weight, block), np.broadcast_to(np.expand_dims(block.T, 0), (tiles, m, r)).reshape(tiles * m, r)


@delta.vjp
def _(da, db, weight, block):
    """dD gathers the tiles: dD[t, k] = sum_q dB[q m + k, t]."""
    r, m = block.shape
    return np.sum(db.reshape(db.shape[0] // max(1, m), m, r), axis=0).T


def _shards(weight, block):
    """A, constant: A[t, j] = 1 where t = j mod r."""
    column, row = positions(weight, 1), np.expand_dims(positions(block, 0), 1)
    return np.where(np.equal(np.remainder(column, max(1, block.shape[0])), row), 1.0, 0.0)


linear = delta.linear("miss.linear", sizes=SIZES, nonfinite=("x", "weight", "bias"))
merge = delta.merge("miss.merge", sizes=SIZES, nonfinite=("weight",))
unmerge = delta.unmerge


def init(random: np.random.Generator, o: int, i: int, *, rank: int, mini: int | None = None) -> dict[str, np.ndarray]:
    """D zero.

    Returns
    -------
    dict of str to float64 array
        block (rank, o), or (rank, mini).
    """
    return {"block": np.zeros((rank, o if mini is None else mini))}


def count(o: int, i: int, *, rank: int, mini: int | None = None) -> int:
    """Trainable parameters: r o, or r m."""
    return rank * (o if mini is None else mini)
