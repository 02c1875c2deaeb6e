"""VeLoRA: LoRA that keeps one number for each group of inputs for the backward pass (Miles et al. 2024, arXiv:2405.17991).

The forward is LoRA's. What the gradient to A needs of x is kept as projections on a fixed vector v, one for each of the k groups
of g inputs, and put together again from them:

    y = W x + s B A x        x^ = c (x_1 . v) v, ..., c (x_k . v) v        dA = dhᵀ x^    where LoRA has dhᵀ x

All other gradients are LoRA's; v gets none.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import detach, straight_through
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows


@operation(
    "velora.linear",
    "x[*n,i] weight[o,i] a[r,i] b[o,r] v[g] bias?[o] -> y[*n,o] where groups >= 1, i = g*groups",
    nonfinite=("weight", "b", "bias"),
)
def linear(x, weight, a, b, v, bias=None, *, scaling: float, groups: int, restore: float = 1.0):
    """y = x Wᵀ + bias + s x Aᵀ Bᵀ, with the gradient to A taken through x^.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    a, b : (r, i), (o, r)
        LoRA's factors.
    v : (g,)
        What each group of inputs is projected on, usually of norm one.
    bias : (o,), optional
        The base layer's bias.
    scaling : float
        s; alpha / r.
    groups : int
        k; i = k g.
    restore : float
        c, by which x^ is multiplied.

    Returns
    -------
    y : (*n, o)
    """
    surrogate = detach(_restored(x, v, groups, restore)) @ a.T + x @ detach(a).T
    h = straight_through(x @ a.T, surrogate)
    return plus(x @ weight.T + (scaling * h) @ b.T, bias)


@linear.vjp
def _(dy, x, weight, a, b, v, bias=None, *, scaling, groups, restore=1.0):
    """With du = s dy and dh = du B: dx = dy W + dh A, dW = dyᵀ x, dA = dhᵀ x^, dB = duᵀ (x Aᵀ), dv = 0."""
    du = scaling * dy
    dh = du @ b
    da, db = rows(dh).T @ rows(_restored(x, v, groups, restore)), rows(du).T @ rows(x @ a.T)
    return dy @ weight + dh @ a, rows(dy).T @ rows(x), da, db, 0.0 * v, rows(dy).sum(axis=0)


def _restored(x, v, groups, restore):
    """x^, (*n, i)."""
    parts = x.reshape(*x.shape[:-1], groups, v.shape[0])
    return (restore * (np.expand_dims(parts @ v, -1) * v)).reshape(x.shape)


def projection(x: np.ndarray, *, groups: int) -> np.ndarray:
    """v from a batch: the mean of all groups of inputs (*n, i), brought to norm one; equal entries where that mean is zero.

    Returns
    -------
    (i / groups,) float64
    """
    mean = x.astype(np.float64).reshape(-1, x.shape[-1] // groups).mean(axis=0)
    mean = mean if np.any(mean) else np.ones_like(mean)
    return mean / np.linalg.norm(mean)
