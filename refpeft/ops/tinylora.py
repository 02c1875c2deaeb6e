"""TinyLoRA: a handful of numbers mixes fixed random matrices inside a frozen LoRA (arXiv:2602.04118).

    W' = W + B R A      R = sum_m v_m P_m      A (r, i) = sqrt(S_r) V_rᵀ,  B (o, r) = U_r sqrt(S_r)  of  W = U S Vᵀ

A and B carry W's leading singular values and vectors, P_m (r, r) are random; all three are frozen. Only v is trained, and a
group of layers may share it.
"""

from __future__ import annotations

import numpy as np

from refpeft.ops._factors import factors
from refpeft.ops.lora_init import finite

SIZES = {"r": (2, 1, 3), "u": (3, 1, 2, 5)}


@factors("a[r,i] b[o,r] projections[u,r,r] v[u]", where="r <= min(o,i)")
def delta(a, b, projections, v):
    """A and B R, R = sum_m v_m P_m.

    Parameters
    ----------
    a : (r, i)
    b : (o, r)
    projections : (u, r, r)
        P_m.
    v : (u,)
        The only trained numbers.
    """
    return a, b @ _mixed(projections, v)


@delta.vjp
def _(da, db, a, b, projections, v):
    """dR = Bᵀ d(B R), dv_m = <dR, P_m>, dP_m = v_m dR."""
    u, r = projections.shape[:2]
    dmixed = (b.T @ db).reshape(r * r)
    dprojections = np.expand_dims(v, 1) * np.expand_dims(dmixed, 0)
    return da, db @ _mixed(projections, v).T, dprojections.reshape(u, r, r), projections.reshape(u, r * r) @ dmixed


def _mixed(projections, v):
    u, r = projections.shape[:2]
    return (v @ projections.reshape(u, r * r)).reshape(r, r)


linear = delta.linear("tinylora.linear", sizes=SIZES)
merge = delta.merge("tinylora.merge", sizes=SIZES)
unmerge = delta.unmerge


def init(random: np.random.Generator, weight: np.ndarray, *, rank: int, u: int) -> dict[str, np.ndarray]:
    """The weight's leading singular vectors; P normal with variance 1 / r; v uniform on [-0.02, 0.02), as in peft.

    Parameters
    ----------
    random : numpy.random.Generator
    weight : (o, i)
    rank : int
        r; the smaller side of the weight where that is less.
    u : int
        How many matrices v mixes.

    Returns
    -------
    dict of str to float64 array
        a (r, i), b (o, r), projections (u, r, r) and v (u,).
    """
    left, values, right = np.linalg.svd(finite("tinylora", weight), full_matrices=False)
    rank = min(rank, len(values))
    root = np.sqrt(values[:rank])
    return {
        "a": root[:, None] * right[:rank],
        "b": left[:, :rank] * root,
        "projections": random.normal(0, rank**-0.5, (u, rank, rank)),
        "v": random.uniform(-0.02, 0.02, u),
    }


def count(*, u: int) -> int:
    """Trainable parameters of a group of layers: u."""
    return u
