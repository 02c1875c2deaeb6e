"""Formats of 4 bits, chunk by chunk through the second-level cache.

The rank of a codeword is the number of bounds that v has passed: fifteen comparisons, added up as bytes, many elements to an
instruction. Decoding looks up a byte, two codes, in a table of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from refpeft.numerics.formats import as_format
from refpeft.ops._blocks import FLOOR
from refpeft_cpu.threads import share_out

ENCODED, DECODED = 2**18, 2**16
"""Elements at a time: they and what is made of them stay in the cache, and a call's cost is spread over many."""
LEAST = 2**18
"""Elements that make another thread worth its start."""
LEAST_DIVISOR = np.float32(FLOOR)


class Format(NamedTuple):
    """Sixteen codewords.

    Attributes
    ----------
    bounds : sequence of (ufunc, float32)
        ``np.greater`` or ``np.greater_equal`` and a number, ascending: v has passed the bound where it is true.
    codes : (256,) uint8 or None
        From two ranks in a byte to two codes; None where they are the same.
    floored : bool
        Whether the partial block's maximum is stored as it divides, not less than 1e-38.
    """

    bounds: Sequence[tuple[Callable, np.float32]]
    codes: np.ndarray | None = None
    floored: bool = False


def quantize(weight, blocksize, format: Format):
    """Full blocks are multiplied by the reciprocal of their maximum; the partial one at the end is divided by its own."""
    n = weight.size
    full, step = n // blocksize, max(1, ENCODED // blocksize)
    packed, absmax = np.empty((n + 1) // 2, np.uint8), np.empty(-(-n // blocksize), np.float32)

    def encode(first, last):
        v, room = np.empty((step, blocksize), np.float32), Room(step * blocksize)
        for start in range(first, last, step):
            stop = min(start + step, last)
            x = weight[start * blocksize : stop * blocksize].astype(np.float32, copy=False).reshape(-1, blocksize)
            maxima, scaled = absmax[start:stop], np.abs(x, out=v[: stop - start])
            np.max(_bits(scaled), axis=1, out=_bits(maxima))
            np.multiply(x, (1 / np.maximum(maxima, LEAST_DIVISOR))[:, None], out=scaled)
            _pack(scaled.reshape(-1), format, room, packed[start * blocksize // 2 : stop * blocksize // 2])

    share_out(encode, full, max(1, LEAST // blocksize))
    rest = weight[full * blocksize :].astype(np.float32)
    if rest.size:
        absmax[-1] = np.max(np.abs(rest))
        divisor = max(absmax[-1], LEAST_DIVISOR)
        even = np.pad(rest / divisor, (0, rest.size % 2))
        _pack(even, format, Room(even.size), packed[full * blocksize // 2 :])
        if format.floored:
            absmax[-1] = divisor
    return packed, absmax


def _bits(x):
    """Floating-point numbers that are not negative are ordered as their bits, whose maximum takes a third of the time."""
    return x.view(np.int32)


class Room:
    """Memory for what is made of a chunk, taken once: fresh memory costs more than the work that is done in it."""

    def __init__(self, size: int):
        self.ranks, self.passed = np.empty(size, np.uint8), np.empty(size, bool)
        self.low = np.empty(size // 2, "<u2")


def _pack(v, format, room, packed):
    """The codes of v, two a byte, the first in the high half: a little-endian word of two ranks has it in its low byte."""
    ranks, passed, low = room.ranks[: v.size], room.passed[: v.size], room.low[: v.size // 2]
    (passes, bound), *rest = format.bounds
    passes(v, bound, out=ranks.view(bool))
    for passes, bound in rest:
        passes(v, bound, out=passed)
        np.add(ranks, passed.view(np.uint8), out=ranks)
    words = ranks.view("<u2")
    np.right_shift(words, 8, out=low)
    np.left_shift(words, 4, out=words)
    np.bitwise_or(words, low, out=words)
    packed[...] = words if format.codes is None else format.codes[words & 255]


def decoded(packed, absmax, n, blocksize, dtype, pairs):
    """The n weights: one look-up for two in a table of `pairs_of` codewords, and one product each."""
    packed, absmax = np.ascontiguousarray(packed), np.ascontiguousarray(absmax)
    y, step = np.empty(n, as_format(dtype).dtype), max(1, DECODED // blocksize)

    def decode(first, last):
        room = np.empty((step, blocksize), np.float32)
        for start in range(first, last, step):
            stop = min(start + step, last)
            target = y[start * blocksize : stop * blocksize]
            whole = target.dtype == np.float32 and target.size == (stop - start) * blocksize
            values = target.reshape(-1, blocksize) if whole else room[: stop - start]
            codes = packed[start * blocksize // 2 : stop * blocksize // 2].astype(np.intp)
            found = values.reshape(-1).view(np.uint64)
            np.take(pairs, codes, out=found[: codes.size], mode="clip")
            found[codes.size :] = 0
            np.multiply(values, absmax[start:stop, None], out=values)
            if not whole:
                target[...] = values.reshape(-1)[: target.size]

    with np.errstate(over="ignore"):
        share_out(decode, absmax.size, max(1, LEAST // blocksize))
    return y


def pairs_of(codewords) -> np.ndarray:
    """The two codewords of every byte, as one number of 64 bits: (256,) uint64 of (16,) numbers."""
    codewords = np.asarray(codewords, np.float32)
    return np.stack([np.repeat(codewords, 16), np.tile(codewords, 16)], axis=1).view(np.uint64).reshape(-1)
