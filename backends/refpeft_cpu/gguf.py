"""GGUF's Q4_0, Q4_1 and Q8_0: codes are the integer parts of sums, as casts give them.

Blocks of 32 codes of 4 bits are packed and unpacked eight at a time, as numbers of 64 bits: of the four in a block the last two
are the high halves of the first two.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format
from refpeft.ops.gguf import LEAST, SIZE
from refpeft_cpu.chunks import blocks_of, largest, share_blocks
from refpeft_cpu.memory import empty

LOW_HALVES = np.uint64(0x0F0F0F0F0F0F0F0F)


def quantize_q4_0(weight, *, residuals=True):
    """From -8 d, the extreme, up."""
    packed, d = np.empty(weight.size // 2, np.uint8), np.empty(weight.size // SIZE, np.float32)

    def encode(chunks, step):
        v, codes = np.empty((step, SIZE), np.float32), np.empty((step, SIZE), np.uint8)
        for start, stop in chunks:
            x, scaled = blocks_of(weight, start, stop, SIZE), v[: stop - start]
            place = np.argmax(np.abs(x, out=scaled).view(np.int32), axis=1)
            exact = x[np.arange(len(x)), place] / np.float32(-8)
            np.multiply(x, _reciprocal(exact), out=scaled)
            scaled += np.float32(8.5)
            _pack(scaled, codes[: stop - start], packed[start * 16 : stop * 16])
            d[start:stop] = exact.astype(np.float16)

    share_blocks(encode, d.size, SIZE)
    return (packed, d), None


def quantize_q4_1(weight, *, residuals=True):
    """From the smallest element up."""
    packed = np.empty(weight.size // 2, np.uint8)
    d, m = np.empty((2, weight.size // SIZE), np.float32)

    def encode(chunks, step):
        v, codes = np.empty((step, SIZE), np.float32), np.empty((step, SIZE), np.uint8)
        for start, stop in chunks:
            x, scaled = blocks_of(weight, start, stop, SIZE), v[: stop - start]
            low, high = _ends(x, scaled)
            exact = (high - low) / np.float32(15)
            np.subtract(x, low[:, None], out=scaled)
            scaled *= _reciprocal(exact)
            scaled += np.float32(0.5)
            _pack(scaled, codes[: stop - start], packed[start * 16 : stop * 16])
            d[start:stop], m[start:stop] = exact.astype(np.float16), low.astype(np.float16)

    share_blocks(encode, d.size, SIZE)
    return (packed, d, m), None


def quantize_q8_0(weight, *, residuals=True):
    """The integer part of 2 v, halved away from zero."""
    codes, d = np.empty((weight.size // SIZE, SIZE), np.int8), np.empty(weight.size // SIZE, np.float32)

    def encode(chunks, step):
        v, twice = np.empty((step, SIZE), np.float32), np.empty((step, SIZE), np.int16)
        for start, stop in chunks:
            x, exact = blocks_of(weight, start, stop, SIZE), d[start:stop]
            scaled, parts = v[: stop - start], twice[: stop - start]
            largest(x, scaled, exact)
            exact /= np.float32(127)
            np.multiply(x, 2 * _reciprocal(exact), out=scaled)
            np.copyto(parts, scaled, casting="unsafe")
            parts += parts > 0
            parts >>= 1
            np.copyto(codes[start:stop], parts, casting="unsafe")
            exact[...] = exact.astype(np.float16)

    share_blocks(encode, d.size, SIZE)
    return (codes.reshape(-1), d), None


def dequantize_q4_0(packed, d, *, dtype, residuals=True):
    """d (code - 8)."""

    def integers(start, stop, out):
        _unpack(packed[start * 16 : stop * 16], out)
        np.subtract(out, 8, out=out)

    return (_decoded(integers, d, dtype),), None


def dequantize_q4_1(packed, d, m, *, dtype, residuals=True):
    """d code + m."""
    return (_decoded(lambda start, stop, out: _unpack(packed[start * 16 : stop * 16], out), d, dtype, m),), None


def dequantize_q8_0(codes, d, *, dtype, residuals=True):
    """d code."""
    blocks = codes.reshape(-1, SIZE)
    return (_decoded(lambda start, stop, out: np.copyto(out, blocks[start:stop]), d, dtype),), None


def _decoded(integers, d, dtype, m=None):
    """d times the integers that ``integers(start, stop, out)`` writes for some blocks, plus m."""
    y = empty((d.size, SIZE), as_format(dtype).dtype)

    def decode(chunks, step):
        room, codes = np.empty((step, SIZE), np.float32), np.empty((step, SIZE), np.int8)
        for start, stop in chunks:
            values = y[start:stop] if y.dtype == np.float32 else room[: stop - start]
            integers(start, stop, codes[: stop - start])
            np.copyto(values, codes[: stop - start])
            values *= d[start:stop, None]
            if m is not None:
                values += m[start:stop, None]
            if y.dtype != np.float32:
                y[start:stop] = values

    share_blocks(decode, d.size, SIZE)
    return y.reshape(-1)


def _reciprocal(d):
    """A column of them, zero where d is."""
    usable = np.abs(d) >= LEAST
    return np.where(usable, 1 / np.where(usable, d, 1), 0)[:, None]


def _ends(x, room):
    """The least and the largest of each row, as integers in the numbers' order, which takes half the time."""
    keys = room.view(np.int32)
    np.copyto(keys, _in_order(x.view(np.int32)))
    return (_in_order(end(keys, axis=1)).view(np.float32) for end in (np.min, np.max))


def _in_order(bits):
    """Bits of floating-point numbers as integers in their order, and the other way round: below zero the order is turned."""
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


def _pack(v, codes, packed):
    """Codes of rows of v, at most 15: those of 32 elements in 16 bytes."""
    np.copyto(codes, v, casting="unsafe")
    np.minimum(codes, 15, out=codes)
    words, halves = codes.view(np.uint64), packed.view(np.uint64).reshape(-1, 2)
    for j in range(2):
        np.bitwise_or(words[:, j], words[:, j + 2] << np.uint64(4), out=halves[:, j])


def _unpack(packed, out):
    """The codes again."""
    halves, words = np.ascontiguousarray(packed).view(np.uint64).reshape(-1, 2), out.view(np.uint64)
    for j in range(2):
        np.bitwise_and(halves[:, j], LOW_HALVES, out=words[:, j])
        np.bitwise_and(halves[:, j] >> np.uint64(4), LOW_HALVES, out=words[:, j + 2])
