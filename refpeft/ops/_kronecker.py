"""The Kronecker product W1 (x) W2 of W1 (p, q) and W2 (u, v): p by q blocks, of which block (a, b) is W1[a, b] W2."""

from __future__ import annotations

import math

import numpy as np


def kron(left, right):
    """left (x) right, (p u, q v)."""
    (p, q), (u, v) = left.shape, right.shape
    return (left[:, None, :, None] * right[None, :, None, :]).reshape(p * u, q * v)


def kron_vjp(d, left, right):
    """With D[a, c, b, e] the cotangent at row (a, c) and column (b, e): dleft = sum D right, dright = sum D left."""
    (p, q), (u, v) = left.shape, right.shape
    d = d.reshape(p, u, q, v)
    return np.sum(d * right[None, :, None, :], axis=(1, 3)), np.sum(d * left[:, None, :, None], axis=(0, 2))


def split(size: int, factor: int = -1) -> tuple[int, int]:
    """How LyCORIS and peft divide a side of the weight among the factors: (its share in W1, its share in W2).

    Parameters
    ----------
    size : int
        o or i, at least 1.
    factor : int
        The share of W1 where it divides ``size``; else the largest divisor that is above neither it nor the square root, -1
        meaning the largest not above the square root.

    Returns
    -------
    (int, int)
        Two numbers whose product is ``size``; the smaller one first, except where ``factor`` divides it.
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    root = math.isqrt(size)
    share = next(d for d in range(root if factor == -1 else min(factor, root), 0, -1) if size % d == 0)
    return share, size // share
