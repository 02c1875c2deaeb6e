"""MXFP4: a block's scale is read off the exponent field of its largest number, and its reciprocal written into one."""

from __future__ import annotations

import numpy as np

from refpeft.ops.mxfp4 import BLOCKSIZE, E8M0
from refpeft_cpu import e2m1
from refpeft_cpu.chunks import blocks_of, largest, share_blocks, whole
from refpeft_cpu.decoding import decoded
from refpeft_cpu.four_bit import Room


def quantize(weight, *, residuals=True):
    """Packed codes, and scales."""
    n, weight = weight.size, whole(weight, BLOCKSIZE)
    count = weight.size // BLOCKSIZE
    packed, scales = np.empty(weight.size // 2, np.uint8), np.empty(count, np.uint8)

    def encode(chunks, step):
        room, v, top = Room(step * BLOCKSIZE), np.empty((step, BLOCKSIZE), np.float32), np.empty(step, np.float32)
        for start, stop in chunks:
            x, scaled, maxima = blocks_of(weight, start, stop, BLOCKSIZE), v[: stop - start], top[: stop - start]
            largest(x, scaled, maxima)
            exponents = np.maximum((maxima.view(np.int32) >> 23) - 2, 0)
            scales[start:stop] = exponents
            np.multiply(x, ((254 - exponents) << 23).view(np.float32)[:, None], out=scaled)
            halves = packed[start * BLOCKSIZE // 2 : stop * BLOCKSIZE // 2]
            e2m1.pack(scaled.reshape(-1), x.reshape(-1), room, halves)

    share_blocks(encode, count, BLOCKSIZE)
    return (packed[: (n + 1) // 2], scales), None


def dequantize(packed, scales, *, n, dtype, residuals=True):
    """Every weight, rounded to ``dtype``."""
    return (decoded(packed, e2m1.PAIRS, E8M0.astype(np.float32)[scales], n, BLOCKSIZE, dtype),), None
