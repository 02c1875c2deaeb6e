"""MiSS with the weight in its update, its authors' ``bat`` (Kang and Yin 2024, arXiv:2409.15371).

W is cut into square blocks of side r. All blocks of a row of blocks share one matrix D_g (r, r):

    W'[g, k] = W[g, k] + W[g, k] D_g + D_g      o = g r, i = k r

so that the update depends on the weight and has full rank. D is zero at the start.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.ops._update import update

SIZES = {"o": (4, 2, 6, 1, 3, 9), "i": (2, 6, 4, 1, 3, 9), "r": (2, 1, 3)}


@update("block[g,r,r]", where="g = o//r, o//r*r = o, i//r*r = i, r >= 1")
def delta(weight, block):
    """delta[g, k] = W[g, k] D_g + D_g.

    Parameters
    ----------
    block : (g, r, r)
        D_g, one for each row of blocks.
    """
    return _joined(_blocks(weight, block) @ block + block)


@delta.vjp
def _(ddelta, weight, block):
    """dW[g, k] = d[g, k] D_gᵀ, dD_g = sum_k (W[g, k]ᵀ d[g, k] + d[g, k])."""
    d, blocks = _blocks(ddelta, block), _blocks(weight, block)
    return _joined(d @ block.transpose(0, 2, 1)), np.sum(blocks.transpose(0, 1, 3, 2) @ d + d, axis=0)


def _blocks(matrix, block):
    """(o, i) as (k, g, r, r)."""
    g, r = block.shape[:2]
    return matrix.reshape(g, r, matrix.shape[1] // max(1, r), r).transpose(2, 0, 1, 3)


def _joined(blocks):
    k, g, r, _ = blocks.shape
    return blocks.transpose(1, 2, 0, 3).reshape(g * r, k * r)


linear = delta.linear("miss_bat.linear", sizes=SIZES)
merge = delta.merge("miss_bat.merge", sizes=SIZES)


def unmerge(merged: np.ndarray, block: np.ndarray) -> np.ndarray:
    """W[g, k] = (W'[g, k] - D_g) (I + D_g)^-1, rounded once to the dtype of ``merged``.

    Raises
    ------
    numpy.linalg.LinAlgError
        If I + D_g is singular: then the merge has lost what it should give back.
    """
    block = np.asarray(block, np.float64)
    right = np.swapaxes(_blocks(merged.astype(np.float64), block) - block, -1, -2)
    solved = np.linalg.solve(np.swapaxes(np.eye(block.shape[1]) + block, -1, -2), right)
    return store(_joined(np.swapaxes(solved, -1, -2)), as_format(merged.dtype.name))


def init(random: np.random.Generator, o: int, i: int, *, rank: int) -> dict[str, np.ndarray]:
    """D zero.

    Returns
    -------
    dict of str to float64 array
        block (o / rank, rank, rank).
    """
    return {"block": np.zeros((o // rank, rank, rank))}


def count(o: int, i: int, *, rank: int) -> int:
    """Trainable parameters: o r."""
    return o * rank
