"""QLoRA's layer by kernels."""

from __future__ import annotations

from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own import implements, vjp_of
from refpeft_cupy.own._arrays import contiguous, empty
from refpeft_cupy.own._four_bit import decoded, log2
from refpeft_cupy.own._product import (
    FEW,
    THREADS,
    few_rows,
    large_product,
    low_rank_update,
    row_sum,
    rows_of,
    thin_product,
)
from refpeft_cupy.own.lora import down, up


@implements("qlora.linear")
def linear(x, packed, absmax, a, b, bias=None, *, scaling, blocksize, dtype):
    """Few rows decode the base inside the product; for many it is decoded first, once for all of them."""
    x, packed, absmax, a, b, bias = map(contiguous, (x, packed, absmax, a, b, bias))
    rows, (r, i), o = rows_of(x), a.shape, b.shape[0]
    h = down(x, a)
    if rows > FEW:
        y = up(x, decoded("nf4", packed, absmax, (o, i), blocksize, dtype), h, b, scaling, bias=bias)
    else:
        y = empty(x, (rows, o))
        arguments = (x, packed, absmax, h, b, bias, y, rows, i, o, r, scaling, log2(blocksize))
        launch(kernel("qlora_linear", dtype), few_rows(rows, o), (THREADS,), arguments)
    return (y.reshape(*x.shape[:-1], o),), (x, packed, absmax, a, b, h, scaling, blocksize, dtype)


@vjp_of("qlora.linear")
def _(residuals, cotangents, wanted):
    """As lora.linear's, but that W is frozen; it is decoded again rather than kept."""
    x, packed, absmax, a, b, h, scaling, blocksize, dtype = residuals
    dy, rows, (r, i), o = contiguous(cotangents[0]), rows_of(x), a.shape, b.shape[0]
    dh = thin_product(dy, b, (rows, r), o, scale=scaling) if {"x", "a"} & set(wanted) else None

    def dx():
        base = large_product(dy, decoded("nf4", packed, absmax, (o, i), blocksize, dtype), (rows, i), o)
        return low_rank_update(base, dh, a, (rows, i), summed=True).reshape(x.shape)

    gradients = {
        "x": dx,
        "a": lambda: thin_product(dh, x, (r, i), rows, left_turned=True),
        "b": lambda: thin_product(dy, h, (o, r), rows, left_turned=True, scale=scaling),
        "bias": lambda: row_sum(dy, o),
    }
    return tuple(gradients[name]() for name in wanted)
