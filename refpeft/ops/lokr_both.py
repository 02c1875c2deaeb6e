"""LoKr with two low-rank factors: delta = s (W1a W1b) (x) (W2a W2b), what LyCORIS calls ``decompose_both``.

W1a (p, r), W1b (r, q), W2a (u, r), W2b (r, v), o = p u, i = q v, s = alpha / r. W1a is zero at the start.
"""

from __future__ import annotations

import numpy as np

from refpeft.ops._kronecker import kron, kron_vjp, split
from refpeft.ops._update import update
from refpeft.ops.lokr import SIZES
from refpeft.ops.lora_init import kaiming_uniform


@update("w1_a[p,r] w1_b[r,q] w2_a[u,r] w2_b[r,v]", where="o = p*u, i = q*v")
def delta(w1_a, w1_b, w2_a, w2_b, *, scaling: float):
    """delta = s (W1a W1b) (x) (W2a W2b).

    Parameters
    ----------
    w1_a : (p, r)
    w1_b : (r, q)
    w2_a : (u, r)
    w2_b : (r, v)
    scaling : float
        s; alpha / r.
    """
    return scaling * kron(w1_a @ w1_b, w2_a @ w2_b)


@delta.vjp
def _(ddelta, w1_a, w1_b, w2_a, w2_b, *, scaling):
    """Through the Kronecker product, and then through both products."""
    dw1, dw2 = kron_vjp(scaling * ddelta, w1_a @ w1_b, w2_a @ w2_b)
    return dw1 @ w1_b.T, w1_a.T @ dw1, dw2 @ w2_b.T, w2_a.T @ dw2


linear = delta.linear("lokr_both.linear", sizes=SIZES)
merge = delta.merge("lokr_both.merge", sizes=SIZES)
unmerge = delta.unmerge


def init(random: np.random.Generator, o: int, i: int, *, rank: int, factor: int = -1) -> dict[str, np.ndarray]:
    """W1a zero, the others Kaiming-uniform.

    Returns
    -------
    dict of str to float64 array
        w1_a (p, rank), w1_b (rank, q), w2_a (u, rank) and w2_b (rank, v).
    """
    (p, u), (q, v) = split(o, factor), split(i, factor)
    return {
        "w1_a": np.zeros((p, rank)),
        "w1_b": kaiming_uniform(random, (rank, q)),
        "w2_a": kaiming_uniform(random, (u, rank)),
        "w2_b": kaiming_uniform(random, (rank, v)),
    }


def count(o: int, i: int, *, rank: int, factor: int = -1) -> int:
    """Trainable parameters: r (p + q + u + v)."""
    return rank * (sum(split(o, factor)) + sum(split(i, factor)))
