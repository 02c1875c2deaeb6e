"""LoKr with two dense factors (KronA, Edalati et al. 2022, arXiv:2212.10650): delta = s W1 (x) W2.

W1 (p, q), W2 (u, v), o = p u, i = q v. What peft trains where the rank is at least half of W2's larger side, so that a
product of rank r would save nothing.
"""

from __future__ import annotations

import numpy as np

from refpeft.ops._kronecker import kron, kron_vjp, split
from refpeft.ops._update import update
from refpeft.ops.lokr import SIZES
from refpeft.ops.lora_init import kaiming_uniform


@update("w1[p,q] w2[u,v]", where="o = p*u, i = q*v")
def delta(w1, w2, *, scaling: float):
    """delta = s W1 (x) W2.

    Parameters
    ----------
    w1 : (p, q)
    w2 : (u, v)
    scaling : float
        s.
    """
    return scaling * kron(w1, w2)


@delta.vjp
def _(ddelta, w1, w2, *, scaling):
    """Each factor's gradient sums over the blocks, or within them."""
    return kron_vjp(scaling * ddelta, w1, w2)


linear = delta.linear("lokr_dense.linear", sizes=SIZES)
merge = delta.merge("lokr_dense.merge", sizes=SIZES)
unmerge = delta.unmerge


def init(random: np.random.Generator, o: int, i: int, *, factor: int = -1) -> dict[str, np.ndarray]:
    """W1 zero, W2 Kaiming-uniform.

    Returns
    -------
    dict of str to float64 array
        w1 (p, q) and w2 (u, v), where `split` divides o into (p, u) and i into (q, v).
    """
    (p, u), (q, v) = split(o, factor), split(i, factor)
    return {"w1": np.zeros((p, q)), "w2": kaiming_uniform(random, (u, v))}


def count(o: int, i: int, *, factor: int = -1) -> int:
    """Trainable parameters: p q + u v."""
    (p, u), (q, v) = split(o, factor), split(i, factor)
    return p * q + u * v
