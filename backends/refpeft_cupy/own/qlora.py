"""QLoRA's layer by kernels."""

from __future__ import annotations

from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own import implements, vjp_of
from refpeft_cupy.own._arrays import contiguous, empty
from refpeft_cupy.own._product import THREADS, TILE, product, row_sum, rows_of, tiles, warps
from refpeft_cupy.own.lora import down


@implements("qlora.linear")
def linear(x, packed, absmax, a, b, bias=None, *, scaling, blocksize, dtype):
    """The base is decoded inside the product, in either direction."""
    x, packed, absmax, a, b, bias = map(contiguous, (x, packed, absmax, a, b, bias))
    rows, (r, i), o = rows_of(x), a.shape, b.shape[0]
    h, y = down(x, a), empty(x, (*x.shape[:-1], o))
    arguments = (x, packed, absmax, h, b, bias, y, rows, i, o, r, scaling, blocksize)
    launch(kernel("qlora_linear", x.dtype.name), warps(rows, o), (THREADS,), arguments)
    return (y,), (x, packed, absmax, a, b, h, scaling, blocksize)


@vjp_of("qlora.linear")
def _(residuals, cotangents, wanted):
    """As lora.linear's, but for W, which is frozen."""
    x, packed, absmax, a, b, h, scaling, blocksize = residuals
    dy, rows, (r, i), o = contiguous(cotangents[0]), rows_of(x), a.shape, b.shape[0]
    dh = product(dy, b, (rows, r), o, scale=scaling) if {"x", "a"} & set(wanted) else None

    def dx():
        result = empty(x, x.shape)
        arguments = (dy, packed, absmax, dh, a, result, rows, o, r, i, blocksize)
        launch(kernel("qlora_dx", x.dtype.name, "lora_gradients"), tiles(rows, i), (TILE, TILE), arguments)
        return result

    gradients = {
        "x": dx,
        "a": lambda: product(dh, x, (r, i), rows, left_turned=True),
        "b": lambda: product(dy, h, (o, r), rows, left_turned=True, scale=scaling),
        "bias": lambda: row_sum(dy, o),
    }
    return tuple(gradients[name]() for name in wanted)
