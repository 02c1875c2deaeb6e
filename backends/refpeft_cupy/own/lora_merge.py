"""LoRA's update as a matrix, put into a weight and taken out, by kernels."""

from __future__ import annotations

from refpeft_cupy.own import implements, vjp_of
from refpeft_cupy.own._arrays import contiguous
from refpeft_cupy.own._product import low_rank_update, product


def update(weight, a, b, scaling):
    """W + s B A, or s B A alone."""
    weight, a, b = map(contiguous, (weight, a, b))
    merged = low_rank_update(weight, b, a, (b.shape[0], a.shape[1]), scaling=scaling)
    return (merged,), (a, b, scaling)


def update_vjp(residuals, cotangents, wanted):
    """With u = s dmerged: dA = Bᵀ u, dB = u Aᵀ; the base receives the cotangent itself."""
    a, b, scaling = residuals
    d, (o, r), i = contiguous(cotangents[0]), b.shape, a.shape[1]
    gradients = {
        "weight": d.copy,
        "merged": d.copy,
        "a": lambda: product(b, d, (r, i), o, left_turned=True, scale=scaling),
        "b": lambda: product(d, a, (o, r), i, right_turned=True, scale=scaling),
    }
    return tuple(gradients[name]() for name in wanted)


@implements("lora.delta")
def delta(a, b, *, scaling):
    """The update alone."""
    return update(None, a, b, scaling)


@implements("lora.merge")
def merge(weight, a, b, *, scaling):
    """The update put in."""
    return update(weight, a, b, scaling)


@implements("lora.unmerge")
def unmerge(merged, a, b, *, scaling):
    """The update taken out."""
    return update(merged, a, b, -scaling)


for _name in ("lora.delta", "lora.merge", "lora.unmerge"):
    vjp_of(_name)(update_vjp)
