"""Codes of 4 bits: the rank of a codeword is the number of bounds that v has passed, fifteen comparisons added up as bytes, many
elements to an instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from refpeft_cpu.chunks import LEAST_DIVISOR, blocks_of, over_largest, share_blocks
from refpeft_cpu.threads import count

ENCODED = 2**17
"""Elements at a time, and twice as many where there are several threads: between loops they wait for the interpreter, so that
long ones pay there, though they leave the second-level cache.
"""

Bounds = Sequence[tuple[Callable, np.float32]]
"""``np.greater`` or ``np.greater_equal`` and a number, ascending: v has passed the bound where it is true."""


class Format(NamedTuple):
    """Sixteen codewords.

    Attributes
    ----------
    bounds : Bounds
        Fifteen.
    codes : (256,) uint8 or None
        From two ranks in a byte to two codes; None where they are the same.
    floored : bool
        Whether the partial block's maximum is stored as it divides, not less than 1e-38.
    """

    bounds: Bounds
    codes: np.ndarray | None = None
    floored: bool = False


def quantize(weight, blocksize, format: Format):
    """Full blocks are multiplied by the reciprocal of their maximum; the partial one at the end is divided by its own."""
    n = weight.size
    full = n // blocksize
    packed, absmax = np.empty((n + 1) // 2, np.uint8), np.empty(-(-n // blocksize), np.float32)

    def encode(chunks, step):
        v, room = np.empty((step, blocksize), np.float32), Room(step * blocksize)
        for start, stop in chunks:
            scaled = v[: stop - start]
            over_largest(blocks_of(weight, start, stop, blocksize), scaled, absmax[start:stop])
            _pack(scaled.reshape(-1), format, room, packed[start * blocksize // 2 : stop * blocksize // 2])

    share_blocks(encode, full, blocksize, ENCODED * min(count(), 2))
    rest = weight[full * blocksize :].astype(np.float32)
    if rest.size:
        absmax[-1] = np.max(np.abs(rest))
        divisor = max(absmax[-1], LEAST_DIVISOR)
        even = np.pad(rest / divisor, (0, rest.size % 2))
        _pack(even, format, Room(even.size), packed[full * blocksize // 2 :])
        if format.floored:
            absmax[-1] = divisor
    return packed, absmax


class Room:
    """Memory for the codes of a chunk."""

    def __init__(self, size: int):
        self.ranks, self.passed = np.empty(size, np.uint8), np.empty(size, bool)
        self.low = np.empty(size // 2, "<u2")


def count_passed(v, bounds: Bounds, room: Room):
    """How many bounds each v has passed."""
    ranks, passed = room.ranks[: v.size], room.passed[: v.size]
    (passes, bound), *rest = bounds
    passes(v, bound, out=ranks.view(bool))
    for passes, bound in rest:
        passes(v, bound, out=passed)
        np.add(ranks, passed.view(np.uint8), out=ranks)
    return ranks


def _pack(v, format, room, packed):
    """The codes of v, two a byte, the first in the high half: a little-endian word of two ranks has it in its low byte."""
    words, low = count_passed(v, format.bounds, room).view("<u2"), room.low[: v.size // 2]
    np.right_shift(words, 8, out=low)
    np.left_shift(words, 4, out=words)
    np.bitwise_or(words, low, out=words)
    packed[...] = words if format.codes is None else format.codes[words & 255]
