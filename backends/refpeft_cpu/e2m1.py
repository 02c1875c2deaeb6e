"""E2M1, the elements of MXFP4 and NVFP4: seven comparisons for the magnitude, one for the sign."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refpeft.ops._e2m1 import CODEBOOK, MIDPOINTS
from refpeft_cpu.chunks import blocks_of, largest, share_blocks, whole
from refpeft_cpu.decoding import pairs_of
from refpeft_cpu.four_bit import Room, count_passed

BOUNDS = tuple((np.greater_equal if place % 2 else np.greater, np.float32(m)) for place, m in enumerate(MIDPOINTS))
"""Ties go to even: every second midpoint belongs to the codeword above it."""

PAIRS = pairs_of(CODEBOOK, first_is_high=False)


def quantized(weight, blocksize, scaled_by: Callable):
    """Packed codes of the weights in blocks, and codes of the blocks' scales.

    ``scaled_by(x, maxima, out)`` puts rows x over their scales into ``out``, which holds their magnitudes; it gives the codes of
    the scales, and what has the signs.
    """
    n, weight = weight.size, whole(weight, blocksize)
    count = weight.size // blocksize
    packed, scales = np.empty(weight.size // 2, np.uint8), np.empty(count, np.uint8)

    def encode(chunks, step):
        room, v, top = Room(step * blocksize), np.empty((step, blocksize), np.float32), np.empty(step, np.float32)
        for start, stop in chunks:
            x, scaled, maxima = blocks_of(weight, start, stop, blocksize), v[: stop - start], top[: stop - start]
            largest(x, scaled, maxima)
            scales[start:stop], signed = scaled_by(x, maxima, scaled)
            pack(scaled.reshape(-1), signed.reshape(-1), room, packed[start * blocksize // 2 : stop * blocksize // 2])

    share_blocks(encode, count, blocksize)
    return packed[: (n + 1) // 2], scales


def pack(v, signed, room: Room, packed):
    """The codes of v, two a byte, the first in the low half; the signs are those of ``signed``. Takes v for its magnitudes.

    A little-endian word of two codes has the first in its low byte already: the second one joins it there.
    """
    negative = np.less(signed, 0)
    ranks = count_passed(np.abs(v, out=v), BOUNDS, room)
    negative = np.left_shift(negative.view(np.uint8), 3, out=negative.view(np.uint8))
    words, second = np.bitwise_or(ranks, negative, out=ranks).view("<u2"), room.low[: v.size // 2]
    np.right_shift(words, 4, out=second)
    np.copyto(packed, np.bitwise_or(words, second, out=words), casting="unsafe")
