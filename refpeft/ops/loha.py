"""LoHa: low-rank Hadamard product (Hyeon-Woo et al. 2021, arXiv:2108.06098, FedPara, proposition 2; LyCORIS).

The update is the elementwise product of two low-rank matrices, of rank up to r squared with 2 r (o + i) parameters:

    delta = s (W1a W1b) o (W2a W2b)        W1a, W2a (o, r), W1b, W2b (r, i), s = alpha / r

W2b is zero and the others random at the start, so that training begins at the base model.
"""

from __future__ import annotations

import numpy as np

from refpeft.ops._update import update
from refpeft.ops.lora_init import kaiming_uniform


@update("w1_a[o,r] w1_b[r,i] w2_a[o,r] w2_b[r,i]")
def delta(w1_a, w1_b, w2_a, w2_b, *, scaling: float):
    """delta = s (W1a W1b) o (W2a W2b).

    Parameters
    ----------
    w1_a, w2_a : (o, r)
    w1_b, w2_b : (r, i)
    scaling : float
        s; alpha / r.
    """
    return scaling * ((w1_a @ w1_b) * (w2_a @ w2_b))


@delta.vjp
def _(ddelta, w1_a, w1_b, w2_a, w2_b, *, scaling):
    """With u = s ddelta: d(W1a W1b) = u o (W2a W2b) and d(W2a W2b) = u o (W1a W1b), each the product of a pair."""
    u = scaling * ddelta
    first, second = u * (w2_a @ w2_b), u * (w1_a @ w1_b)
    return first @ w1_b.T, w1_a.T @ first, second @ w2_b.T, w2_a.T @ second


linear = delta.linear("loha.linear")
conv2d = delta.conv2d("loha.conv2d")
merge = delta.merge("loha.merge")
unmerge = delta.unmerge


def init(random: np.random.Generator, o: int, i: int, *, rank: int) -> dict[str, np.ndarray]:
    """Factors at the start, as LyCORIS and peft draw them: W2b zero, the others Kaiming-uniform.

    Returns
    -------
    dict of str to float64 array
        w1_a, w2_a (o, rank) and w1_b, w2_b (rank, i).
    """
    return {
        "w1_a": kaiming_uniform(random, (o, rank)),
        "w1_b": kaiming_uniform(random, (rank, i)),
        "w2_a": kaiming_uniform(random, (o, rank)),
        "w2_b": np.zeros((rank, i)),
    }


def count(o: int, i: int, *, rank: int) -> int:
    """Trainable parameters: 2 r (o + i)."""
    return 2 * rank * (o + i)
