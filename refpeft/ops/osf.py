"""OSF: orthogonal subspace fine-tuning (Nayak et al. 2025, arXiv:2504.07097, as peft implements it).

With the singular value decomposition of the weight, the h largest triplets are frozen and the others are trained:

    W = H diag(S_h) Gᵀ + U diag(s) V        H (o, h),  G (i, h);  U (o, k),  s (k),  V (k, i),  h + k = min(o, i)

The frozen part is the layer's weight from then on, W_high, and the layer is W' = W_high + U diag(s) V. So that what the frozen
directions hold is not disturbed, the gradients to U and V are projected on what is orthogonal to them:

    dU <- dU - H Hᵀ dU        dV <- dV - dV G Gᵀ

This projection is a part of the definition here: it is stated in the forward, as a straight-through step.
"""

from __future__ import annotations

import numpy as np

from refpeft.errors import ShapeError
from refpeft.numerics.formats import as_format, store
from refpeft.numerics.primitives import detach, straight_through
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops.lora_init import finite


@operation(
    "osf.linear",
    "x[*n,i] weight[o,i] u[o,k] s[k] v[k,i] high_u[o,h] high_v[h,i] bias?[o] -> y[*n,o]",
    nonfinite=("x", "weight", "s", "bias"),
)
def linear(x, weight, u, s, v, high_u, high_v, bias=None):
    """y = x W_highᵀ + ((x Vᵀ) o s) Uᵀ + bias, U and V with projected gradients.

    Parameters
    ----------
    x : (*n, i)
    weight : (o, i)
        W_high, the frozen part of the base weight.
    u, s, v : (o, k), (k,), (k, i)
        What is trained: left singular vectors, singular values, right singular vectors as rows.
    high_u, high_v : (o, h), (h, i)
        H, and G transposed: the frozen directions, orthonormal. They get no gradient.
    bias : (o,), optional
        The base layer's bias.

    Returns
    -------
    y : (*n, o)
    """
    h, g = detach(high_u), detach(high_v)
    u = straight_through(u, u - h @ (h.T @ u))
    v = straight_through(v, v - (v @ g.T) @ g)
    return plus(x @ weight.T + ((x @ v.T) * s) @ u.T, bias)


@linear.vjp
def _(dy, x, weight, u, s, v, high_u, high_v, bias=None):
    """With p = x Vᵀ, q = p o s and dq = dy U: ds = sum of dq o p, dU = dyᵀ q and dV = (s o dq)ᵀ x, both projected;
    dx = dy W_high + (s o dq) V. H and G get none.
    """
    p, dq = x @ v.T, dy @ u
    dp = s * dq
    du, dv = rows(dy).T @ rows(s * p), rows(dp).T @ rows(x)
    du, dv = du - high_u @ (high_u.T @ du), dv - (dv @ high_v.T) @ high_v
    ds, dweight, dbias = np.sum(rows(dq * p), axis=0), rows(dy).T @ rows(x), rows(dy).sum(axis=0)
    return dy @ weight + dp @ v, dweight, du, ds, dv, 0.0 * high_u, 0.0 * high_v, dbias


@operation("osf.merge", "weight[o,i] u[o,k] s[k] v[k,i] -> merged[o,i]")
def merge(weight, u, s, v):
    """merged = W_high + U diag(s) V; its gradients are not projected."""
    return weight + (u * s) @ v


@merge.vjp
def _(dmerged, weight, u, s, v):
    """With q = dmerged Vᵀ: dU = q diag(s), ds = the sums of U o q over rows, dV = diag(s) Uᵀ dmerged."""
    q = dmerged @ v.T
    return dmerged, q * s, np.sum(u * q, axis=0), (u * s).T @ dmerged


@linear.problems
def orthonormal(random, arrays, attributes):
    """Frozen directions as they are: rows of a rotation, as many as the side has, and U and V partly along them."""

    def directions(shape):
        side, count = max(shape), min(shape)
        basis = np.linalg.qr(random.normal(size=(side, side)))[0][:count]
        return basis if shape[0] == count else basis.T

    return {n: directions(arrays[n].shape) for n in ("high_u", "high_v") if min(arrays[n].shape)}


def unmerge(merged: np.ndarray, u: np.ndarray, s: np.ndarray, v: np.ndarray) -> np.ndarray:
    """W_high, which ``merged`` came from, up to the merge's rounding."""
    wide = (np.asarray(u, np.float64) * np.asarray(s, np.float64)) @ np.asarray(v, np.float64)
    return store(merged.astype(np.float64) - wide, as_format(merged.dtype.name))


def init(weight: np.ndarray, *, preserved: float) -> dict[str, np.ndarray]:
    """The decomposition: the frozen part as the new weight, and the trained one, so that training begins at the base model.

    Parameters
    ----------
    weight : (o, i)
    preserved : float
        Share of the triplets that are frozen, from 0 to below 1, or their number.

    Returns
    -------
    dict of str to float64 array
    """
    h = frozen(*weight.shape, preserved=preserved)
    left, values, right = np.linalg.svd(finite("osf", weight), full_matrices=False)
    return {"u": left[:, h:], "s": values[h:], "v": right[h:]} | _high(left, values, right, h)


def high(weight: np.ndarray, *, trained: int) -> dict[str, np.ndarray]:
    """The frozen part alone, where the last ``trained`` triplets are not in it. How its vectors are turned is of no account.

    Raises
    ------
    ShapeError
        If there are not so many.
    """
    h = min(weight.shape) - trained
    if h < 0:
        raise ShapeError(f"osf: a weight {weight.shape} has {min(weight.shape)} triplets, but {trained} came.")
    return _high(*np.linalg.svd(finite("osf", weight), full_matrices=False), h)


def _high(left, values, right, h):
    return {"high_u": left[:, :h], "high_v": right[:h], "weight": (left[:, :h] * values[:h]) @ right[:h]}


def frozen(o: int, i: int, *, preserved: float) -> int:
    """h, how many triplets are frozen."""
    return int(min(o, i) * preserved) if preserved < 1 else min(o, i, int(preserved))


def count(o: int, i: int, *, preserved: float) -> int:
    """Trainable parameters: k (o + i + 1)."""
    return (min(o, i) - frozen(o, i, preserved=preserved)) * (o + i + 1)
