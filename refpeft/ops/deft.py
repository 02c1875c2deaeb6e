"""DEFT: a subspace of the weight is taken out and filled anew (DEFT, decompositional efficient fine-tuning, NeurIPS 2025).

    W' = (I - P Qᵀ) W + s P R      delta = P (s R - Qᵀ W)      P, Q (o, r),  R (r, i),  s = alpha / r

with Q = relu(P), or Q = P of orthonormal columns, so that P Qᵀ is a projector. PaRa leaves R out: delta = -P Qᵀ W. R starts
at Qᵀ W / s, so that training begins at the base model; PaRa cannot begin there.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.formats import as_format, store
from refpeft.ops._activations import relu, relu_vjp
from refpeft.ops._update import update
from refpeft.ops.lora_init import finite

Projection = Literal["relu", "orthogonal"]
Fill = Literal["deft", "para"]


@update("subspace[o,r] fill[r,i]")
def delta(weight, subspace, fill, *, scaling: float, projection: Projection = "relu", variant: Fill = "deft"):
    """delta = P (s R - Qᵀ W), without R for PaRa.

    Parameters
    ----------
    subspace : (o, r)
        P.
    fill : (r, i)
        R; not used by PaRa.
    scaling : float
        s; alpha / r.
    projection : str
        ``"relu"`` for Q = relu(P); ``"orthogonal"`` for Q = P, whose columns are then to be orthonormal.
    variant : str
        ``"para"`` takes the subspace out and fills nothing in.
    """
    return subspace @ _inside(weight, subspace, fill, scaling, projection, variant)


@delta.vjp
def _(ddelta, weight, subspace, fill, *, scaling, projection="relu", variant="deft"):
    """With M = s R - Qᵀ W and dM = Pᵀ ddelta: dP = ddelta Mᵀ + dQ through Q, dQ = -W dMᵀ, dR = s dM, dW = -Q dM."""
    inside, dinside = _inside(weight, subspace, fill, scaling, projection, variant), subspace.T @ ddelta
    dq = weight @ dinside.T
    removed = relu_vjp(dq, subspace) if projection == "relu" else dq
    dfill = scaling * dinside if variant == "deft" else 0.0 * fill
    return -(_other(subspace, projection) @ dinside), ddelta @ inside.T - removed, dfill


def _other(subspace, projection):
    return relu(subspace) if projection == "relu" else subspace


def _inside(weight, subspace, fill, scaling, projection, variant):
    taken = _other(subspace, projection).T @ weight
    return scaling * fill - taken if variant == "deft" else -taken


linear = delta.linear("deft.linear", sizes={"r": (2, 1, 3)}, nonfinite=("x", "weight", "bias"))
merge = delta.merge("deft.merge", sizes={"r": (2, 1, 3)}, nonfinite=("weight",))


def unmerge(
    merged: np.ndarray,
    subspace: np.ndarray,
    fill: np.ndarray,
    *,
    scaling: float,
    projection: Projection = "relu",
    variant: Fill = "deft",
) -> np.ndarray:
    """W = W'' + P (I - Qᵀ P)^-1 Qᵀ W'' with W'' = W' - s P R, rounded once to the dtype of ``merged`` (Woodbury).

    Raises
    ------
    DomainError
        If I - Qᵀ P is singular, as for every orthogonal projection: the merge has lost the subspace.
    """
    p, r = finite("deft.unmerge", subspace, "subspace"), np.asarray(fill, np.float64)
    q = _other(p, projection)
    left = merged.astype(np.float64) - (scaling * (p @ r) if variant == "deft" else 0.0)
    core = np.eye(p.shape[1]) - q.T @ p
    if projection == "orthogonal" or np.linalg.matrix_rank(core) < len(core):
        raise DomainError("deft.unmerge: the merge has taken a subspace out of the weight that nothing gives back.")
    return store(left + p @ np.linalg.solve(core, q.T @ left), as_format(merged.dtype.name))


def init(random: np.random.Generator, weight: np.ndarray, *, rank: int, scaling: float, orthogonal: bool = False):
    """P normal with deviation 0.02, orthonormalised if asked for; R = Qᵀ W / s.

    Returns
    -------
    dict of str to float64 array
        subspace (o, r) and fill (r, i), r at most o.
    """
    weight = np.asarray(weight, np.float64)
    p = random.normal(0, 0.02, (len(weight), min(rank, len(weight))))
    p = np.linalg.qr(p)[0] if orthogonal else p
    return {"subspace": p, "fill": _other(p, "orthogonal" if orthogonal else "relu").T @ weight / scaling}


def count(o: int, i: int, *, rank: int) -> int:
    """Trainable parameters: r (o + i), r at most o."""
    return min(rank, o) * (o + i)
