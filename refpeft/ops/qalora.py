"""QA-LoRA: quantisation-aware low-rank adaptation (Xu et al. 2023, arXiv:2309.14717, algorithm 1).

The adapter sees the sum of the inputs of each group of a group-wise quantised weight, so that its update is constant within a
group and can be merged into the zero points, without quantising again:

    p_j = sum of x over group j        y = W x + s B A p        A (r, l), B (o, r), i = l group
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops._update import update

Variant = Literal["paper", "peft"]


def _factor(groups, group, variant):
    """What a group's sum is multiplied by."""
    return 1.0 if variant == "paper" else groups / group


def _spread(p, group):
    """(..., l) as (..., l group): each element for every input of its group."""
    return np.broadcast_to(np.expand_dims(p, -1), (*p.shape, group)).reshape(*p.shape[:-1], p.shape[-1] * group)


@operation("qalora.linear", "x[*n,i] weight[o,i] a[r,l] b[o,r] bias?[o] -> y[*n,o] where group >= 1, i = l*group")
def linear(x, weight, a, b, bias=None, *, scaling: float, group: int, variant: Variant = "paper"):
    """y = x Wᵀ + bias + s p Aᵀ Bᵀ, where p sums x over each group.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W, already dequantised.
    a, b : (r, l), (o, r)
        LoRA's factors, with one column of A for each of the l groups.
    bias : (o,), optional
        The base layer's bias.
    scaling : float
        s; alpha / r.
    group : int
        How many inputs share a scale and a zero point.
    variant : "paper" or "peft"
        The sum over a group; or its mean times the number of groups.

    Returns
    -------
    y : (*n, o)
    """
    p = _pooled(x, group, variant)
    return plus(x @ weight.T + (scaling * (p @ a.T)) @ b.T, bias)


@linear.vjp
def _(dy, x, weight, a, b, bias=None, *, scaling, group, variant="paper"):
    """With p as pooled, du = s dy and dh = du B: dA = dhᵀ p, dB = duᵀ (p Aᵀ), dp = dh A, dx = dy W + dp spread over its group."""
    p, du = _pooled(x, group, variant), scaling * dy
    dh = du @ b
    dp = _factor(a.shape[1], group, variant) * (dh @ a)
    da, db = rows(dh).T @ rows(p), rows(du).T @ rows(p @ a.T)
    return dy @ weight + _spread(dp, group), rows(dy).T @ rows(x), da, db, rows(dy).sum(axis=0)


def _pooled(x, group, variant):
    groups = x.shape[-1] // group
    total = np.sum(x.reshape(*x.shape[:-1], groups, group), axis=-1)
    return total if variant == "paper" else groups * (total / group)


@update("a[r,l] b[o,r]", "group >= 1, i = l*group")
def delta(a, b, *, scaling: float, group: int, variant: Variant = "paper"):
    """delta = s B A, each column repeated for the inputs of its group.

    Parameters
    ----------
    a, b : (r, l), (o, r)
        LoRA's factors, with one column of A for each of the l groups.
    scaling : float
        s; alpha / r.
    group : int
        How many inputs share a scale and a zero point.
    variant : "paper" or "peft"
        As above.
    """
    return _spread(_factor(a.shape[1], group, variant) * (scaling * (b @ a)), group)


@delta.vjp
def _(ddelta, a, b, *, scaling, group, variant="paper"):
    """With u = s ddelta summed over each group: dA = Bᵀ u, dB = u Aᵀ."""
    u = scaling * _pooled(ddelta, group, variant)
    return b.T @ u, u @ a.T


merge = delta.merge("qalora.merge")
unmerge = delta.unmerge


def count(o: int, i: int, *, rank: int, group: int) -> int:
    """Trainable parameters: r (o + i / group)."""
    return rank * (o + i // group)
