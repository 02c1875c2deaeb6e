"""Any codebook: few codewords are compared with, among many the nearest is looked up."""

from __future__ import annotations

import numpy as np

from refpeft.ops._blocks import between
from refpeft_cpu.chunks import blocks_of, over_largest, share_blocks, whole
from refpeft_cpu.decoding import decoded
from refpeft_cpu.four_bit import Room, count_passed
from refpeft_cpu.nearest import Nearest

FEW = 32
"""Codewords of which comparing takes less time than looking up."""


def quantize(weight, codebook, *, blocksize, residuals=True):
    """Codes, and maxima."""
    n, weight = weight.size, whole(weight, blocksize)
    codes, absmax = np.empty(weight.size, np.uint8), np.empty(weight.size // blocksize, np.float32)
    midpoints = between(codebook.astype(np.float64)).astype(np.float32)
    bounds = tuple((np.greater, m) for m in midpoints)
    nearest = Nearest.among(midpoints) if len(codebook) > FEW else None

    def encode(chunks, step):
        room, ranks = np.empty((step, blocksize), np.float32), Room(step * blocksize)
        for start, stop in chunks:
            scaled, found = room[: stop - start], codes[start * blocksize : stop * blocksize]
            over_largest(blocks_of(weight, start, stop, blocksize), scaled, absmax[start:stop])
            v = np.clip(scaled, -1, 1, out=scaled).reshape(-1)
            if nearest is None:
                found[...] = count_passed(v, bounds, ranks)
            else:
                nearest.find(v, found)

    share_blocks(encode, absmax.size, blocksize)
    return (codes[:n], absmax), None


def dequantize(codes, absmax, codebook, *, blocksize, dtype, residuals=True):
    """The codeword times its block's maximum, rounded to ``dtype``."""
    return (decoded(codes, codebook, absmax, codes.size, blocksize, dtype),), None
