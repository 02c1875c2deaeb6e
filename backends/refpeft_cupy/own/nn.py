"""The plain layer: LoRA's of rank zero."""

from __future__ import annotations

from refpeft_cupy.own import implements, vjp_of
from refpeft_cupy.own._arrays import contiguous, empty
from refpeft_cupy.own._product import large_product, row_sum, rows_of
from refpeft_cupy.own.lora import up


@implements("nn.linear")
def linear(x, weight, bias=None):
    """x Wᵀ + bias, in one pass where there are few rows."""
    x, weight, bias = map(contiguous, (x, weight, bias))
    rows, o = rows_of(x), weight.shape[0]
    y = up(x, weight, empty(x, (rows, 0)), empty(x, (o, 0)), 1.0, bias=bias)
    return (y.reshape(*x.shape[:-1], o),), (x, weight)


@vjp_of("nn.linear")
def _(residuals, cotangents, wanted):
    """dx = dy W, dW = dyᵀ x, dbias = the sum of dy over the batch."""
    x, weight = residuals
    dy, rows, (o, i) = contiguous(cotangents[0]), rows_of(x), weight.shape
    gradients = {
        "x": lambda: large_product(dy, weight, (rows, i), o).astype(x.dtype, copy=False).reshape(x.shape),
        "weight": lambda: large_product(dy, x, (o, i), rows, left_turned=True).astype(x.dtype, copy=False),
        "bias": lambda: row_sum(dy, o),
    }
    return tuple(gradients[name]() for name in wanted)
