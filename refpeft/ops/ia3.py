"""(IA)^3: infused adapter by inhibiting and amplifying inner activations (Liu et al. 2022, arXiv:2205.05638, section 3.3).

A learned vector l multiplies activations: keys and values in attention, and what enters the second matrix of the
feed-forward block. Beside a linear layer W (o, i) that is its outputs, or its inputs:

    output    y = l o (W x + b)        l (o)
    input     y = W (l o x) + b        l (i)

l is one at the start, so that training begins at the base model.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.formats import as_format, store
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows

Side = Literal["output", "input"]


@operation("ia3.linear", "x[*n,i] weight[o,i] scale[o*is(side,output)+i*is(side,input)] bias?[o] -> y[*n,o]")
def linear(x, weight, scale, bias=None, *, side: Side = "output"):
    """y = l o (x Wᵀ + bias), or (l o x) Wᵀ + bias.

    Parameters
    ----------
    x : (*n, i)
    weight : (o, i)
        Frozen base weight W.
    scale : (o,) or (i,)
        l.
    bias : (o,), optional
        The base layer's bias; scaled with the outputs that it is part of.
    side : "output" or "input"
        What l multiplies.

    Returns
    -------
    y : (*n, o)
    """
    if side == "output":
        return scale * plus(x @ weight.T, bias)
    return plus((scale * x) @ weight.T, bias)


@linear.vjp
def _(dy, x, weight, scale, bias=None, *, side="output"):
    """output: with v = x Wᵀ + bias, dl is the sum of dy o v, and dv = l o dy enters the layer.
    input: with z = l o x, dz = dy W comes out of it, dl is the sum of x o dz, and dx = l o dz.
    """
    if side == "output":
        v, dv = plus(x @ weight.T, bias), scale * dy
        return dv @ weight, rows(dv).T @ rows(x), rows(dy * v).sum(axis=0), rows(dv).sum(axis=0)
    z, dz = scale * x, dy @ weight
    return scale * dz, rows(dy).T @ rows(z), rows(x * dz).sum(axis=0), rows(dy).sum(axis=0)


@operation("ia3.merge", "weight[o,i] scale[o*is(side,output)+i*is(side,input)] -> merged[o,i]")
def merge(weight, scale, *, side: Side = "output"):
    """W with l in its rows or columns. A bias on the side of the outputs is a column (o, 1) and merges alike.

    Parameters
    ----------
    weight : (o, i)
    scale : (o,) or (i,)
    side : "output" or "input"

    Returns
    -------
    merged : (o, i)
    """
    return weight * _across(scale, side)


@merge.vjp
def _(dmerged, weight, scale, *, side="output"):
    """dW = l o dmerged, and dl is the sum of W o dmerged along what l multiplies."""
    return dmerged * _across(scale, side), (weight * dmerged).sum(axis=1 if side == "output" else 0)


def unmerge(
    merged: np.ndarray, scale: np.ndarray, *, side: Side = "output", variant: Literal["exact", "peft"] = "exact"
) -> np.ndarray:
    """The weight that ``merged`` came from, up to the merge's rounding: merged / l, rounded once to its dtype.

    Parameters
    ----------
    merged : (o, i)
    scale : (o,) or (i,)
    side : "output" or "input"
    variant : "exact" or "peft"
        peft divides by l + 1e-8, so that a zero in l gives zeros; every other weight comes back a little too small.

    Raises
    ------
    DomainError
        If an element of l is zero, for whatever it multiplied is lost; not under ``variant="peft"``.
    """
    factor = scale.astype(np.float64) + (1e-8 if variant == "peft" else 0.0)
    if np.any(factor == 0):
        raise DomainError("ia3.unmerge: scale holds zeros, and what they multiplied is lost.")
    return store(merged.astype(np.float64) / _across(factor, side), as_format(merged.dtype.name))


def init(size: int) -> dict[str, np.ndarray]:
    """l = 1 of that size, as a float64 array."""
    return {"scale": np.ones(size)}


def count(o: int, i: int, *, side: str = "output") -> int:
    """Trainable parameters: one for each output or input."""
    return o if side == "output" else i


def _across(scale, side: Side):
    """l against a matrix (o, i): along its rows, or its columns."""
    return np.expand_dims(scale, 1) if side == "output" else scale
