"""LoRA's layer and its merging by kernels."""

from __future__ import annotations

from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own import implements, vjp_of
from refpeft_cupy.own._arrays import blocks, contiguous, empty
from refpeft_cupy.own._product import THREADS, TILE, product, row_sum, rows_of, tiles, warps


def down(x, a, mask=None, keep=1.0):
    """h = drop(x) Aᵀ, (rows, r)."""
    rows, (r, i) = rows_of(x), a.shape
    h = empty(x, (rows, r))
    arguments = (x, mask, a, h, rows, i, r, keep)
    launch(kernel("lora_down", x.dtype.name, "lora_linear"), warps(rows, r), (THREADS,), arguments)
    return h


@implements("lora.linear")
def linear(x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep=1.0):
    """The projection to rank r, then both products and the biases in one pass."""
    inputs = tuple(map(contiguous, (x, weight, a, b, bias, lora_bias, mask)))
    x, weight, a, b, bias, lora_bias, mask = inputs
    rows, (o, i), r = rows_of(x), weight.shape, a.shape[0]
    h, y = down(x, a, mask, keep), empty(x, (*x.shape[:-1], o))
    arguments = (x, weight, h, b, bias, lora_bias, y, rows, i, o, r, scaling)
    launch(kernel("lora_linear", x.dtype.name), warps(rows, o), (THREADS,), arguments)
    return (y,), (x, weight, a, b, mask, h, scaling, keep)


@vjp_of("lora.linear")
def _(residuals, cotangents, wanted):
    """dh = s dy B where x or A wants it; the rest as the kernels' page has it."""
    x, weight, a, b, mask, h, scaling, keep = residuals
    dy, rows, (o, i), r = contiguous(cotangents[0]), rows_of(x), weight.shape, a.shape[0]
    dh = product(dy, b, (rows, r), o, scale=scaling) if {"x", "a"} & set(wanted) else None

    def dx():
        result = empty(x, x.shape)
        arguments = (dy, weight, dh, a, mask, result, rows, o, r, i, keep)
        launch(kernel("lora_dx", x.dtype.name, "lora_gradients"), tiles(rows, i), (TILE, TILE), arguments)
        return result

    gradients = {
        "x": dx,
        "weight": lambda: product(dy, x, (o, i), rows, left_turned=True),
        "a": lambda: product(dh, x, (r, i), rows, left_turned=True, kept=mask, keep=keep),
        "b": lambda: product(dy, h, (o, r), rows, left_turned=True, scale=scaling),
        "bias": lambda: row_sum(dy, o),
        "lora_bias": lambda: row_sum(dy, o, scaling),
    }
    return tuple(gradients[name]() for name in wanted)


def _update(weight, a, b, scaling):
    """W + s B A, or s B A alone."""
    weight, a, b = map(contiguous, (weight, a, b))
    (o, r), i = b.shape, a.shape[1]
    merged = empty(a, (o, i))
    arguments = (weight, a, b, merged, o, r, i, scaling)
    launch(kernel("lora_merge", a.dtype.name), (blocks(o * i, THREADS),), (THREADS,), arguments)
    return (merged,), (a, b, scaling)


def _update_vjp(residuals, cotangents, wanted):
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
    return _update(None, a, b, scaling)


@implements("lora.merge")
def merge(weight, a, b, *, scaling):
    """The update put in."""
    return _update(weight, a, b, scaling)


@implements("lora.unmerge")
def unmerge(merged, a, b, *, scaling):
    """The update taken out."""
    return _update(merged, a, b, -scaling)


for _name in ("lora.delta", "lora.merge", "lora.unmerge"):
    vjp_of(_name)(_update_vjp)
