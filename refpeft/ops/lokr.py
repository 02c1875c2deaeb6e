"""LoKr: Kronecker product with a low-rank factor (Yeh et al. 2023, arXiv:2309.14859, LyCORIS; KronA, arXiv:2212.10650).

A small matrix W1 says how copies of a low-rank W2a W2b are laid out over the weight, as blocks:

    delta = s W1 (x) (W2a W2b)      W1 (p, q), W2a (u, r), W2b (r, v), o = p u, i = q v, s = alpha / r

W1 is zero and the others random at the start. `lokr_dense` has W2 as one matrix, `lokr_both` W1 as a product too.
"""

from __future__ import annotations

import numpy as np

from refpeft.ops._kronecker import kron, kron_vjp, split
from refpeft.ops._update import update
from refpeft.ops.lora_init import kaiming_uniform

SIZES = {"p": (2, 3, 1, 5), "q": (3, 2, 1, 5), "u": (2, 3, 1, 4), "v": (3, 2, 1, 4, 6, 8, 9)}


@update("w1[p,q] w2_a[u,r] w2_b[r,v]", where="o = p*u, i = q*v")
def delta(w1, w2_a, w2_b, *, scaling: float):
    """delta = s W1 (x) (W2a W2b).

    Parameters
    ----------
    w1 : (p, q)
    w2_a : (u, r)
    w2_b : (r, v)
    scaling : float
        s; alpha / r.
    """
    return scaling * kron(w1, w2_a @ w2_b)


@delta.vjp
def _(ddelta, w1, w2_a, w2_b, *, scaling):
    """Through the Kronecker product, and then through the product W2 = W2a W2b."""
    dw1, dw2 = kron_vjp(scaling * ddelta, w1, w2_a @ w2_b)
    return dw1, dw2 @ w2_b.T, w2_a.T @ dw2


linear = delta.linear("lokr.linear", sizes=SIZES)
conv2d = delta.conv2d("lokr.conv2d", sizes=SIZES | {"cg": (1, 2, 3, 4, 6)})
merge = delta.merge("lokr.merge", sizes=SIZES)
unmerge = delta.unmerge


def init(
    random: np.random.Generator, o: int, i: int, *, rank: int, factor: int = -1, lycoris: bool = False
) -> dict[str, np.ndarray]:
    """Factors at the start: W1 zero as in peft, or W2b zero as in LyCORIS; the others Kaiming-uniform.

    Returns
    -------
    dict of str to float64 array
        w1 (p, q), w2_a (u, rank) and w2_b (rank, v), where `split` divides o into (p, u) and i into (q, v).
    """
    (p, u), (q, v) = split(o, factor), split(i, factor)
    w1, w2_b = kaiming_uniform(random, (p, q)), kaiming_uniform(random, (rank, v))
    return {
        "w1": w1 if lycoris else np.zeros((p, q)),
        "w2_a": kaiming_uniform(random, (u, rank)),
        "w2_b": np.zeros((rank, v)) if lycoris else w2_b,
    }


def count(o: int, i: int, *, rank: int, factor: int = -1) -> int:
    """Trainable parameters: p q + r (u + v)."""
    (p, u), (q, v) = split(o, factor), split(i, factor)
    return p * q + rank * (u + v)
