"""LoRA on the weights of experts, which one array of three axes holds (Hu et al. 2021, arXiv:2106.09685, as peft lays it out).

Each expert has an update of rank r of its own, and each token an expert:

    y[p] = x[p] (W_j + s B_j A_j)ᵀ        j = expert[p]        merged_j = W_j + s B_j A_j

The factors of all experts are two matrices, a (e r, i) and b (o, r e). A's rows count experts first, B's columns ranks first:

    A_j[k] = a[j r + k]        B_j[:, k] = b[:, k e + j]

``layout`` tells whether a weight is (e, o, i), ``"out_in"``, or (e, i, o), ``"in_out"``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.primitives import scatter_add, take
from refpeft.operation import operation
from refpeft.ops._arrays import turned
from refpeft.ops.lora_init import kaiming_uniform

Layout = Literal["out_in", "in_out"]
_WEIGHT = "[e,o*is(layout,out_in)+i*is(layout,in_out),i*is(layout,out_in)+o*is(layout,in_out)]"
_SIZES = {"e": (2, 1, 3), "n": (2, 3, 1, 5, 0), "er": (2, 4, 3, 6), "o": (2, 1, 3), "i": (2, 3, 1)}


@operation(
    "lora.experts",
    f"x[n,i] expert: index(e)[n] weight{_WEIGHT} a[er,i] b[o,er] -> y[n,o] where e >= 1, er//e*e = er",
    sizes=_SIZES,
)
def experts(x, expert, weight, a, b, *, scaling: float, layout: Layout = "out_in"):
    """y = x (W_j + s B_j A_j)ᵀ, j the expert of the token.

    Parameters
    ----------
    x : (n, i)
        Tokens; one that several experts take is there for each of them.
    expert : (n,) int64
        0 to e - 1.
    weight : (e, o, i), or (e, i, o) in layout ``"in_out"``
        Frozen weights W_j.
    a : (e r, i)
        Expert by expert, the rows of A_j.
    b : (o, r e)
        Rank by rank, a column of each B_j.
    scaling : float
        s; see `lora.scaling`, of the rank r of one expert.
    layout : "out_in" or "in_out"

    Returns
    -------
    y : (n, o)

    Raises
    ------
    DomainError
        If an index is negative or not below e.
    """
    w, a, b = _of_experts(weight, a, b, layout)
    x = np.expand_dims(x, 1)
    h = x @ turned(take(a, expert))
    return (x @ turned(take(w, expert)) + scaling * (h @ turned(take(b, expert))))[:, 0]


@experts.vjp
def _(dy, x, expert, weight, a, b, *, scaling, layout="out_in"):
    """With u = s dy, h = x A_jᵀ and dh = u B_j: dx = dy W_j + dh A_j, and added up over the tokens of an expert,
    dW_j = dyᵀ x, dA_j = dhᵀ x and dB_j = uᵀ h.
    """
    w, by_a, by_b = _of_experts(weight, a, b, layout)
    x, dy = np.expand_dims(x, 1), np.expand_dims(dy, 1)
    u, own_a, own_b = scaling * dy, take(by_a, expert), take(by_b, expert)
    h, dh = x @ turned(own_a), u @ own_b
    dx = (dy @ take(w, expert) + dh @ own_a)[:, 0]
    dw, da, db = (scatter_add(turned(g) @ v, expert, len(w)) for g, v in ((dy, x), (dh, x), (u, h)))
    return dx, _laid_out(dw, layout), da.reshape(a.shape), _beside(db)


@operation(
    "lora.experts_merge",
    f"weight{_WEIGHT} a[er,i] b[o,er] -> merged{_WEIGHT} where e >= 1, er//e*e = er",
    sizes=_SIZES,
)
def merge(weight, a, b, *, scaling: float, layout: Layout = "out_in"):
    """merged_j = W_j + s B_j A_j for every expert, in the layout of W.

    Parameters
    ----------
    weight : (e, o, i), or (e, i, o) in layout ``"in_out"``
    a : (e r, i)
    b : (o, r e)
    scaling : float
    layout : "out_in" or "in_out"

    Returns
    -------
    merged : as weight
    """
    _, by_a, by_b = _of_experts(weight, a, b, layout)
    return weight + _laid_out(scaling * (by_b @ by_a), layout)


@merge.vjp
def _(dmerged, weight, a, b, *, scaling, layout="out_in"):
    """With u_j = s dmerged_j: dW = dmerged, dA_j = B_jᵀ u_j, dB_j = u_j A_jᵀ."""
    d, by_a, by_b = _of_experts(dmerged, a, b, layout)
    u = scaling * d
    return dmerged, (turned(by_b) @ u).reshape(a.shape), _beside(u @ turned(by_a))


def _of_experts(weight, a, b, layout):
    """W_j (e, o, i), A_j (e, r, i) and B_j (e, o, r)."""
    (er, i), (o, _), e = a.shape, b.shape, weight.shape[0]
    return _laid_out(weight, layout), a.reshape(e, er // e, i), b.reshape(o, er // e, e).transpose(2, 0, 1)


def _laid_out(weights, layout):
    """From (e, o, i) to the layout, or back."""
    return weights if layout == "out_in" else turned(weights)


def _beside(factors):
    """B_j (e, o, r) to b (o, r e)."""
    e, o, r = factors.shape
    return factors.transpose(1, 2, 0).reshape(o, r * e)


@experts.problems
def shared_experts(random, arrays, attributes):
    """Most tokens take the same expert, so that gradients of one meet; B off zero."""
    return {
        "expert": arrays["expert"] * (random.random(arrays["expert"].shape) < 0.3),
        "b": arrays["b"] * 2.0**-3,
    }


def init(random: np.random.Generator, e: int, o: int, i: int, *, rank: int) -> dict[str, np.ndarray]:
    """a Kaiming-uniform and b zero.

    Returns
    -------
    dict of str to float64 array
        a (e rank, i) and b (o, rank e).
    """
    return {"a": kaiming_uniform(random, (e * rank, i)), "b": np.zeros((o, rank * e))}


def count(e: int, o: int, i: int, *, rank: int) -> int:
    """Trainable parameters: e r (o + i)."""
    return e * rank * (o + i)
