"""(IA)^3's layer: a vector on the outputs or on the inputs of a matrix."""

from __future__ import annotations

import numpy as np

from refpeft_cpu.arrays import kept, narrow, rows, wide


def linear(x, weight, scale, bias=None, *, side="output", residuals=True):
    """y = l o (x Wᵀ + bias), or (l o x) Wᵀ + bias."""
    y = (rows(x) if side == "output" else wide(scale) * rows(x)) @ wide(weight).T
    if bias is not None:
        y += wide(bias)
    plain = y
    if side == "output":
        y = wide(scale) * plain
    y = narrow(y, (*x.shape[:-1], len(weight)), x.dtype)
    reading = ("weight",) if side == "output" else ("weight", "scale")
    return (y,), (kept(x, residuals, *reading), weight, scale, plain, side) if residuals else None


def vjp(residuals, cotangents, wanted):
    """output: dv = l o dy enters the layer, and dl is the sum of dy o v.
    input: dz = dy W leaves it, dl is the sum of x o dz, and dx = l o dz.
    """
    x, weight, scale, plain, side = residuals
    dy, outputs = rows(cotangents[0]), side == "output"
    dv = wide(scale) * dy if outputs else dy
    needed = {"x"} if outputs else {"x", "scale"}
    dz = dv @ wide(weight) if needed & set(wanted) else None
    gradients = {
        "x": lambda: (dz if outputs else wide(scale) * dz, x.shape),
        "weight": lambda: (dv.T @ (rows(x) if outputs else wide(scale) * rows(x)), weight.shape),
        "scale": lambda: (np.einsum("ij,ij->j", *((dy, plain) if outputs else (rows(x), dz))), scale.shape),
        "bias": lambda: (dv.sum(axis=0), len(weight)),
    }
    return tuple(narrow(*gradients[name](), x.dtype) for name in wanted)
