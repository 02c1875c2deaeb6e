"""Products and sums that the gradients of several operations need."""

from __future__ import annotations

from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own._arrays import blocks, empty

ROWS, WARPS, TILE, THREADS = 4, 8, 16, 256
"""As in ``dots.cuh`` and ``tile.cuh``: rows that a warp takes, warps and threads in a block, the side of a tile."""


def rows_of(x):
    """How many vectors a batch (*n, k) has."""
    count = 1
    for size in x.shape[:-1]:
        count *= size
    return count


def warps(rows: int, columns: int) -> tuple[int, int]:
    """The grid for a product with few rows: a warp for each column and ``ROWS`` rows."""
    return blocks(rows, ROWS), blocks(columns, WARPS)


def tiles(rows: int, columns: int) -> tuple[int, int]:
    """The grid for a product by tiles."""
    return blocks(rows, TILE), blocks(columns, TILE)


def product(left, right, shape, inner, *, left_turned=False, right_turned=False, scale=1.0, kept=None, keep=1.0):
    """scale left right, (rows, inner) times (inner, columns); a turned operand lies in memory transposed."""
    rows, columns = shape
    result = empty(left, shape)
    arguments = (left, right, kept, result, rows, inner, columns, left_turned, right_turned, scale, keep)
    launch(kernel("product", left.dtype.name, "lora_gradients"), tiles(rows, columns), (TILE, TILE), arguments)
    return result


def row_sum(dy, columns, scale=1.0):
    """scale times the sum of the vectors of a batch."""
    result = empty(dy, columns)
    arguments = (dy, result, rows_of(dy), columns, scale)
    launch(kernel("row_sum", dy.dtype.name, "lora_gradients"), (blocks(columns, THREADS),), (THREADS,), arguments)
    return result
