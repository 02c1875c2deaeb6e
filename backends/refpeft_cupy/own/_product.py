"""Products and sums that several operations need."""

from __future__ import annotations

import numpy as np

from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own._arrays import blocks, empty

ROWS, COLUMNS, DOWN, ACROSS, TILE, THREADS = 4, 4, 32, 256, 16, 256
"""As in ``dots.cuh``, ``lora_update.cu`` and ``product.cu``: rows and columns of a block, twice; the side of a tile; threads in a
block."""

FEW = ROWS
"""Up to so many rows a layer is one fused kernel, in which a weight is read once; beyond that it is a product by cuBLAS and an
update."""

MANY = 64
"""Where a side is longer than that, a product with a side of length r is cuBLAS' too."""


def rows_of(x):
    """How many vectors a batch (*n, k) has."""
    count = 1
    for size in x.shape[:-1]:
        count *= size
    return count


def few_rows(rows: int, columns: int) -> tuple[int, int]:
    """The grid for a product with few rows: a block for each ``ROWS`` by ``COLUMNS`` results."""
    return blocks(rows, ROWS), blocks(columns, COLUMNS)


def wide(dtype) -> str:
    """The dtype that sums are carried in."""
    return "float64" if dtype == "float64" else "float32"


def product(
    left, right, shape, inner, *, left_turned=False, right_turned=False, scale=1.0, kept=None, keep=1.0, summed=False
):
    """scale left right, (rows, inner) times (inner, columns); a turned operand lies in memory transposed.

    ``summed`` leaves the result in the wide format, not rounded to that of the operands.
    """
    rows, columns = shape
    result = empty(left, shape, wide(left.dtype) if summed else None)
    places = (None, result) if summed else (result, None)
    arguments = (left, right, kept, *places, rows, inner, columns, left_turned, right_turned, scale, keep)
    grid = blocks(rows, TILE), blocks(columns, TILE)
    launch(kernel("product", left.dtype.name), grid, (TILE, TILE), arguments)
    return result


def large_product(left, right, shape, inner, *, left_turned=False, right_turned=False):
    """left right in the wide format, by cuBLAS; the host shim, which has none, takes `product`."""
    if isinstance(left, np.ndarray):
        return product(left, right, shape, inner, left_turned=left_turned, right_turned=right_turned, summed=True)
    from refpeft_cupy.cublas import multiply

    return multiply(left, right, shape, inner, left_turned, right_turned)


def thin_product(left, right, shape, inner, *, scale=1.0, kept=None, keep=1.0, **turned):
    """`product` with a side of length r: by cuBLAS where another is long, unless some of right is dropped."""
    if kept is not None or max(*shape, inner) <= MANY:
        return product(left, right, shape, inner, scale=scale, kept=kept, keep=keep, **turned)
    total = large_product(left, right, shape, inner, **turned)
    return (total if scale == 1.0 else total * scale).astype(left.dtype, copy=False)


def low_rank_update(
    base,
    left,
    right,
    shape,
    *,
    right_turned=False,
    scaling=1.0,
    inner_bias=None,
    bias=None,
    kept=None,
    keep=1.0,
    summed=False,
):
    """base + drop(scaling (left right + inner_bias)) + bias, left being (rows, r); ``summed``: base is in the wide format."""
    rows, columns = shape
    result, r = empty(left, shape), left.shape[-1]
    bases = (None, base) if summed else (base, None)
    arguments = (*bases, left, right, inner_bias, bias, kept, result, rows, r, columns, right_turned, scaling, keep)
    grid = blocks(rows, DOWN), blocks(columns, ACROSS)
    launch(kernel("lora_update", left.dtype.name), grid, (THREADS,), arguments)
    return result


def row_sum(dy, columns, scale=1.0):
    """scale times the sum of the vectors of a batch."""
    result = empty(dy, columns)
    arguments = (dy, result, rows_of(dy), columns, scale)
    launch(kernel("row_sum", dy.dtype.name), (blocks(columns, THREADS),), (THREADS,), arguments)
    return result
