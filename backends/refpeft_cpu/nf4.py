"""NF4, chunk by chunk through the second-level cache.

A code is the number of midpoints below v: fifteen comparisons, added up as bytes, many elements to an instruction. Decoding
looks up a byte, two codes, in a table of pairs.
"""

from __future__ import annotations

import functools

import numpy as np

from refpeft.numerics.formats import as_format
from refpeft.ops._blocks import FLOOR
from refpeft.ops.nf4 import CODEBOOK, MIDPOINTS
from refpeft_cpu.threads import share_out

CHUNK = 2**16
"""Elements at a time: they and what is made of them stay in the cache."""
LEAST = 2**18
"""Elements that make another thread worth its start."""
CODEWORDS = CODEBOOK.astype(np.float32)
BOUNDS = [np.float32(m) for m in MIDPOINTS]
LEAST_DIVISOR = np.float32(FLOOR)


def quantize(weight, *, blocksize, variant, residuals=True):
    """Full blocks are multiplied by the reciprocal of their maximum; the partial one at the end is divided by its own."""
    n = weight.size
    full, step = n // blocksize, max(1, CHUNK // blocksize)
    packed, absmax = np.empty((n + 1) // 2, np.uint8), np.empty(-(-n // blocksize), np.float32)

    def encode(first, last):
        v, above = np.empty((step, blocksize), np.float32), np.empty(step * blocksize, bool)
        for start in range(first, last, step):
            stop = min(start + step, last)
            x = weight[start * blocksize : stop * blocksize].astype(np.float32, copy=False).reshape(-1, blocksize)
            maxima, scaled = absmax[start:stop], np.abs(x, out=v[: stop - start])
            np.max(_bits(scaled), axis=1, out=_bits(maxima))
            np.multiply(x, (1 / np.maximum(maxima, LEAST_DIVISOR))[:, None], out=scaled)
            packed[start * blocksize // 2 : stop * blocksize // 2] = _pack(_codes(scaled.reshape(-1), above))

    share_out(encode, full, max(1, LEAST // blocksize))
    rest = weight[full * blocksize :].astype(np.float32)
    if rest.size:
        absmax[-1] = np.max(np.abs(rest))
        divisor = max(absmax[-1], LEAST_DIVISOR)
        even = np.pad(rest / divisor, (0, rest.size % 2))
        packed[full * blocksize // 2 :] = _pack(_codes(even, np.empty(even.size, bool)))
        if variant == "bitsandbytes-cpu":
            absmax[-1] = divisor
    return (packed, absmax), None


def _bits(x):
    """Floating-point numbers that are not negative are ordered as their bits, whose maximum takes a third of the time."""
    return x.view(np.int32)


def _codes(v, above):
    """How many midpoints lie strictly below each element, as bytes; ``above`` is room for as many answers."""
    above = above[: v.size]
    codes = np.greater(v, BOUNDS[0]).view(np.uint8)
    for bound in BOUNDS[1:]:
        codes += np.greater(v, bound, out=above).view(np.uint8)
    return codes


def _pack(codes):
    """Two codes a byte, the first in the high half: a little-endian word has it in its low byte."""
    words = codes.view("<u2")
    return (words << 4 | words >> 8).astype(np.uint8)


def dequantize(packed, absmax, *, n, blocksize, dtype, residuals=True):
    """Every weight, rounded to ``dtype``."""
    return (decoded(packed, absmax, n, blocksize, dtype),), None


def decoded(packed, absmax, n, blocksize, dtype):
    """The n weights: one look-up for two, and one product each."""
    packed, absmax = np.ascontiguousarray(packed), np.ascontiguousarray(absmax)
    y, step = np.empty(n, as_format(dtype).dtype), max(1, CHUNK // blocksize)

    def decode(first, last):
        room = np.empty((step, blocksize), np.float32)
        for start in range(first, last, step):
            stop = min(start + step, last)
            target = y[start * blocksize : stop * blocksize]
            whole = target.dtype == np.float32 and target.size == (stop - start) * blocksize
            values = target.reshape(-1, blocksize) if whole else room[: stop - start]
            codes = packed[start * blocksize // 2 : stop * blocksize // 2].astype(np.intp)
            pairs = values.reshape(-1).view(np.uint64)
            np.take(_pairs(), codes, out=pairs[: codes.size], mode="clip")
            pairs[codes.size :] = 0
            np.multiply(values, absmax[start:stop, None], out=values)
            if not whole:
                target[...] = values.reshape(-1)[: target.size]

    with np.errstate(over="ignore"):
        share_out(decode, absmax.size, max(1, LEAST // blocksize))
    return y


@functools.cache
def _pairs():
    """The two codewords of every byte, as one number of 64 bits."""
    return np.stack([np.repeat(CODEWORDS, 16), np.tile(CODEWORDS, 16)], axis=1).view(np.uint64).reshape(-1)
