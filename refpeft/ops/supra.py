"""Super-tuning and Supra (arXiv:2607.09287, as peft implements it): a few elements of W are trained, with LoRA beside them.

    W' = W + delta + s B A        delta[p_j] = v_j, zero elsewhere        A (r, i), B (o, r)

The places p are those of W's largest elements, or its smallest. Super-tuning has no B A, and is the layer of SHiRA; Supra is
both. v and B are zero at the start.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.numerics.primitives import take
from refpeft.operation import operation
from refpeft.ops import shira
from refpeft.ops._arrays import plus, rows
from refpeft.ops.lora_init import kaiming_uniform

_PARAMETERS = "values[k] places: index(o*i)[k] a[r,i] b[o,r]"
_SIZES = {"k": (3, 1, 2, 5, 8)}


@operation("supra.linear", f"x[*n,i] weight[o,i] {_PARAMETERS} bias?[o] -> y[*n,o] where k <= o*i", sizes=_SIZES)
def linear(x, weight, values, places, a, b, bias=None, *, scaling: float):
    """y = x Wᵀ + x deltaᵀ + s x Aᵀ Bᵀ + bias.

    Parameters
    ----------
    x : (*n, i)
    weight : (o, i)
        Frozen base weight W.
    values : (k,)
        v.
    places : (k,) int64
        p, row times i plus column; values at a place that comes twice add up.
    a, b : (r, i), (o, r)
        LoRA's factors.
    bias : (o,), optional
        The base layer's bias.
    scaling : float
        s; alpha / r.

    Returns
    -------
    y : (*n, o)
    """
    sparse = x @ shira.delta(weight, values, places).T
    return plus(x @ weight.T + sparse + (scaling * (x @ a.T)) @ b.T, bias)


@linear.vjp
def _(dy, x, weight, values, places, a, b, bias=None, *, scaling):
    """dW = dyᵀ x and dv_j = dW[p_j]; with h = x Aᵀ, du = s dy and dh = du B: dx = dy W + dy delta + dh A, dA = dhᵀ x,
    dB = duᵀ h.
    """
    du, dweight = scaling * dy, rows(dy).T @ rows(x)
    dh = du @ b
    dx = dy @ weight + dy @ shira.delta(weight, values, places) + dh @ a
    dvalues = take(dweight.reshape(int(np.prod(weight.shape))), places)
    return dx, dweight, dvalues, rows(dh).T @ rows(x), rows(du).T @ rows(x @ a.T), rows(dy).sum(axis=0)


@operation("supra.merge", f"weight[o,i] {_PARAMETERS} -> merged[o,i] where k <= o*i", sizes=_SIZES)
def merge(weight, values, places, a, b, *, scaling: float):
    """merged = W + delta + s B A."""
    return weight + shira.delta(weight, values, places) + scaling * (b @ a)


@merge.vjp
def _(dmerged, weight, values, places, a, b, *, scaling):
    """dW = dmerged, dv_j = dmerged[p_j], dA = s Bᵀ dmerged, dB = s dmerged Aᵀ."""
    u = scaling * dmerged
    return dmerged, take(dmerged.reshape(int(np.prod(weight.shape))), places), b.T @ u, u @ a.T


@linear.makes_valid
@merge.makes_valid
def distinct(random, arrays, attributes):
    """Each place once."""
    return {"places": random.permutation(arrays["weight"].size)[: arrays["places"].size]}


def unmerge(merged: np.ndarray, values, places, a, b, *, scaling: float) -> np.ndarray:
    """The weight that ``merged`` came from, up to the merge's rounding."""
    wide = {n: np.asarray(p, np.float64) for n, p in {"values": values, "a": a, "b": b}.items()}
    delta = shira.delta(merged, wide["values"], places) + scaling * (wide["b"] @ wide["a"])
    return store(merged.astype(np.float64) - delta, as_format(merged.dtype.name))


def start(weight: np.ndarray, *, sparsity: float, largest: bool = True) -> dict[str, np.ndarray]:
    """Zero values at the places of the elements that are largest, or smallest, in magnitude."""
    k = count(*weight.shape, sparsity=sparsity)
    return {"values": np.zeros(k), "places": shira.extreme(weight, k, largest=largest)}


def init(
    random: np.random.Generator, weight: np.ndarray, *, sparsity: float, rank: int, largest: bool = True
) -> dict[str, np.ndarray]:
    """Supra's start: values zero, A Kaiming-uniform and B zero."""
    o, i = weight.shape
    factors = {"a": kaiming_uniform(random, (rank, i)), "b": np.zeros((o, rank))}
    return start(weight, sparsity=sparsity, largest=largest) | factors


def count(o: int, i: int, *, sparsity: float, rank: int = 0) -> int:
    """Trainable parameters: a share 1 - sparsity of o i, rounded down, and r (o + i)."""
    return int(o * i * (1 - sparsity)) + rank * (o + i)
