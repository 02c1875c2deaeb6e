"""Products and sums that several operations need."""

from __future__ import annotations

import importlib

import numpy as np

from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own._arrays import blocks, empty

ROWS, WARPS, TILE, THREADS = 4, 8, 16, 256
"""As in ``dots.cuh`` and ``product.cu``: rows that a warp takes, warps and threads in a block, the side of a tile."""

FEW = 16
"""Up to so many rows a layer is one fused kernel, in which a weight is read once for every ``ROWS`` of them; beyond that it is a
product by cuBLAS and an update."""


def rows_of(x):
    """How many vectors a batch (*n, k) has."""
    count = 1
    for size in x.shape[:-1]:
        count *= size
    return count


def warps(rows: int, columns: int) -> tuple[int, int]:
    """The grid for a product with few rows: a warp for each column and ``ROWS`` rows."""
    return blocks(rows, ROWS), blocks(columns, WARPS)


def product(left, right, shape, inner, *, left_turned=False, right_turned=False, scale=1.0, kept=None, keep=1.0):
    """scale left right, (rows, inner) times (inner, columns); a turned operand lies in memory transposed."""
    rows, columns = shape
    result = empty(left, shape)
    arguments = (left, right, kept, result, rows, inner, columns, left_turned, right_turned, scale, keep)
    grid = blocks(rows, TILE), blocks(columns, TILE)
    launch(kernel("product", left.dtype.name), grid, (TILE, TILE), arguments)
    return result


def large_product(left, right, shape, inner, *, left_turned=False, right_turned=False):
    """left right by cuBLAS, numbers of 16 bits in float32: it may add up partial sums in 16 bits itself. The host shim, which has
    no cuBLAS, takes `product`."""
    if isinstance(left, np.ndarray):
        return product(left, right, shape, inner, left_turned=left_turned, right_turned=right_turned)
    cupy = importlib.import_module("cupy")
    (rows, columns), dtype = shape, left.dtype
    with left.device:
        left = left.reshape((inner, rows) if left_turned else (rows, inner))
        right = right.reshape((columns, inner) if right_turned else (inner, columns))
        if dtype.itemsize == 2:
            left, right = left.astype(cupy.float32), right.astype(cupy.float32)
        return cupy.matmul(left.T if left_turned else left, right.T if right_turned else right).astype(
            dtype, copy=False
        )


def low_rank_update(
    base, left, right, shape, *, right_turned=False, scaling=1.0, inner_bias=None, bias=None, kept=None, keep=1.0
):
    """base + drop(scaling (left right + inner_bias)) + bias, left being (rows, r)."""
    rows, columns = shape
    result, r = empty(left, shape), left.shape[-1]
    arguments = (base, left, right, inner_bias, bias, kept, result, rows, r, columns, right_turned, scaling, keep)
    launch(kernel("lora_update", left.dtype.name), (blocks(rows * columns, THREADS),), (THREADS,), arguments)
    return result


def row_sum(dy, columns, scale=1.0):
    """scale times the sum of the vectors of a batch."""
    result = empty(dy, columns)
    arguments = (dy, result, rows_of(dy), columns, scale)
    launch(kernel("row_sum", dy.dtype.name), (blocks(columns, THREADS),), (THREADS,), arguments)
    return result
