"""HiRA: Hadamard high-rank adaptation (Huang et al., ICLR 2025, openreview TwJrTz9cRS).

The weight is multiplied, element by element, by a low-rank matrix, so that the update has high rank where the weight has:

    W' = W + W o (B A)        A (r, i), B (o, r)

B is zero and A random at the start, so that training begins at the base model.
"""

from __future__ import annotations

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.formats import as_format, store
from refpeft.ops._update import update
from refpeft.ops.lora_init import kaiming_uniform


@update("a[r,i] b[o,r]")
def delta(weight, a, b):
    """delta = W o (B A).

    Parameters
    ----------
    weight : (o, i)
        Frozen base weight W.
    a, b : (r, i), (o, r)
        Factors of what multiplies it.
    """
    return weight * (b @ a)


@delta.vjp
def _(ddelta, weight, a, b):
    """With u = W o ddelta: dW = (B A) o ddelta, dA = Bᵀ u, dB = u Aᵀ."""
    u = weight * ddelta
    return ddelta * (b @ a), b.T @ u, u @ a.T


linear = delta.linear("hira.linear")
merge = delta.merge("hira.merge")


def unmerge(merged: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """W = M / (1 + B A), rounded once to the dtype of ``merged``.

    Raises
    ------
    DomainError
        If an element of 1 + B A is zero: what it multiplied is lost.
    """
    factor = 1 + np.asarray(b, np.float64) @ np.asarray(a, np.float64)
    if not np.all(factor):
        at = [int(j) for j in np.argwhere(factor == 0)[0]]
        raise DomainError(f"hira.unmerge: 1 + B A is zero at {at}, so that the weight there is lost.")
    return store(merged.astype(np.float64) / factor, as_format(merged.dtype.name))


def init(random: np.random.Generator, o: int, i: int, *, rank: int) -> dict[str, np.ndarray]:
    """A Kaiming-uniform and B zero, float64.

    Returns
    -------
    dict
        a (rank, i), b (o, rank).
    """
    return {"a": kaiming_uniform(random, (rank, i)), "b": np.zeros((o, rank))}


def count(o: int, i: int, *, rank: int) -> int:
    """Trainable parameters: r (o + i)."""
    return rank * (o + i)
