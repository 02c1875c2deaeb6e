"""LoRA's layer by kernels."""

from __future__ import annotations

from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own import implements, vjp_of
from refpeft_cupy.own._arrays import contiguous, empty
from refpeft_cupy.own._product import (
    FEW,
    MANY,
    THREADS,
    few_rows,
    large_product,
    low_rank_update,
    row_sum,
    rows_of,
    thin_product,
)


def down(x, a, mask=None, keep=1.0):
    """h = drop(x) Aᵀ, (rows, r)."""
    rows, (r, i) = rows_of(x), a.shape
    if mask is None and rows > MANY:
        return thin_product(x, a, (rows, r), i, right_turned=True)
    h = empty(x, (rows, r))
    arguments = (x, mask, a, h, rows, i, r, keep)
    launch(kernel("lora_down", x.dtype.name, "lora_linear"), few_rows(rows, r), (THREADS,), arguments)
    return h


def up(x, weight, h, b, scaling, lora_bias=None, bias=None):
    """y = x Wᵀ + s (h Bᵀ + lora_bias) + bias, (rows, o): in one pass, or where there are many rows in two."""
    rows, (o, i), r = rows_of(x), weight.shape, h.shape[1]
    if rows > FEW:
        base = large_product(x, weight, (rows, o), i, right_turned=True)
        return low_rank_update(
            base, h, b, (rows, o), right_turned=True, scaling=scaling, inner_bias=lora_bias, bias=bias, summed=True
        )
    y = empty(x, (rows, o))
    arguments = (x, weight, h, b, bias, lora_bias, y, rows, i, o, r, scaling)
    launch(kernel("lora_linear", x.dtype.name), few_rows(rows, o), (THREADS,), arguments)
    return y


@implements("lora.linear")
def linear(x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep=1.0):
    """Down to rank r, and up again beside the base."""
    x, weight, a, b, bias, lora_bias, mask = map(contiguous, (x, weight, a, b, bias, lora_bias, mask))
    h = down(x, a, mask, keep)
    y = up(x, weight, h, b, scaling, lora_bias, bias).reshape(*x.shape[:-1], weight.shape[0])
    return (y,), (x, weight, a, b, mask, h, scaling, keep)


@vjp_of("lora.linear")
def _(residuals, cotangents, wanted):
    """With dh = s dy B: dx = dy W + drop(dh A), dW = dyᵀ x, dA = dhᵀ drop(x), dB = s dyᵀ h."""
    x, weight, a, b, mask, h, scaling, keep = residuals
    dy, rows, (o, i), r = contiguous(cotangents[0]), rows_of(x), weight.shape, a.shape[0]
    dh = thin_product(dy, b, (rows, r), o, scale=scaling) if {"x", "a"} & set(wanted) else None

    def dx():
        base = large_product(dy, weight, (rows, i), o)
        return low_rank_update(base, dh, a, (rows, i), kept=mask, keep=keep, summed=True).reshape(x.shape)

    gradients = {
        "x": dx,
        "weight": lambda: large_product(dy, x, (o, i), rows, left_turned=True).astype(x.dtype, copy=False),
        "a": lambda: thin_product(dh, x, (r, i), rows, left_turned=True, kept=mask, keep=keep),
        "b": lambda: thin_product(dy, h, (o, r), rows, left_turned=True, scale=scaling),
        "bias": lambda: row_sum(dy, o),
        "lora_bias": lambda: row_sum(dy, o, scaling),
    }
    return tuple(gradients[name]() for name in wanted)
