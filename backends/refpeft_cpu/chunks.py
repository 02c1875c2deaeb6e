"""Blocks of numbers that share a scale, some at a time: what is made of a chunk stays in the second-level cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from refpeft.ops._blocks import FLOOR
from refpeft_cpu.threads import share_out

CHUNK = 2**16
"""Elements at a time."""
LEAST = 2**18
"""Elements that make another thread worth its start."""
LEAST_DIVISOR = np.float32(FLOOR)


def share_blocks(
    work: Callable[[Iterator[tuple[int, int]], int], None], count: int, size: int, chunk: int = CHUNK
) -> None:
    """Call ``work(chunks, step)`` on each thread's part of ``count`` blocks of ``size`` elements, about ``chunk`` at a time.

    A chunk is its first block and the one after its last, at most ``step`` blocks: memory for them is taken once, since fresh
    memory costs more than the work that is done in it. What is too large for float32 is infinite, without a warning.
    """
    step = max(1, chunk // size)

    def part(first, last):
        chunks = ((start, min(start + step, last)) for start in range(first, last, step))
        with np.errstate(over="ignore", invalid="ignore"):
            work(chunks, min(step, last - first))

    share_out(part, count, max(1, LEAST // size))


def whole(x, size, filling=0):
    """x up to whole blocks."""
    return np.pad(x, (0, -x.size % size), constant_values=filling) if x.size % size else x


def blocks_of(x, start, stop, size):
    """Some of its blocks, as rows of float32 numbers."""
    return x[start * size : stop * size].astype(np.float32, copy=False).reshape(-1, size)


def largest(x, out, maxima):
    """Magnitudes, and the largest of each row: numbers that are not negative are ordered as their bits, whose maximum takes a
    third of the time.
    """
    np.abs(x, out=out)
    np.max(out.view(np.int32), axis=1, out=maxima.view(np.int32))


def over_largest(x, out, maxima):
    """v = x over the largest magnitude of its row: a product with the reciprocal."""
    largest(x, out, maxima)
    np.multiply(x, (1 / np.maximum(maxima, LEAST_DIVISOR))[:, None], out=out)
