"""LLM.int8's integers: rows in chunks, and for the scales of columns once more before them."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format
from refpeft.ops.llm_int8 import LEAST
from refpeft_cpu.chunks import largest, share_blocks
from refpeft_cpu.memory import empty

ONE_127TH = np.float32(1 / 127)


def quantize(weight, *, axis, residuals=True):
    """Codes, and maxima."""
    (m, k), codes = weight.shape, np.empty(weight.shape, np.int8)
    absmax = np.empty(m, np.float32) if axis == "rows" else _largest_of_columns(weight)

    def encode(chunks, step):
        room = np.empty((step, k), np.float32)
        for start, stop in chunks:
            x, v = weight[start:stop].astype(np.float32, copy=False), room[: stop - start]
            if axis == "rows":
                largest(x, v, absmax[start:stop])
            np.multiply(x, steps(absmax[start:stop, None] if axis == "rows" else absmax), out=v)
            np.copyto(codes[start:stop], np.rint(v, out=v), casting="unsafe")

    share_blocks(encode, m, k)
    return (codes, absmax), None


def _largest_of_columns(weight):
    """Magnitudes as integers, as `refpeft_cpu.chunks.largest` has them; each thread's rows, then of those."""
    found = []

    def work(chunks, step):
        top = np.zeros(weight.shape[1], np.int32)
        for start, stop in chunks:
            sizes = np.abs(weight[start:stop].astype(np.float32, copy=False)).view(np.int32)
            np.maximum(top, np.max(sizes, axis=0), out=top)
        found.append(top)

    share_blocks(work, *weight.shape)
    return np.max(found, axis=0).view(np.float32)


def steps(absmax):
    """127 / absmax, by the reciprocal."""
    return np.float32(127) * (1 / np.maximum(absmax, np.float32(LEAST)))


def dequantize(codes, absmax, *, axis, dtype, residuals=True):
    """code absmax / 127, by a product with the reciprocal."""
    y = empty(codes.shape, as_format(dtype).dtype)
    scales = np.broadcast_to(absmax[:, None] if axis == "rows" else absmax, codes.shape)

    def decode(chunks, step):
        room = np.empty((step, codes.shape[1]), np.float32)
        for start, stop in chunks:
            values = y[start:stop] if y.dtype == np.float32 else room[: stop - start]
            np.multiply(codes[start:stop], scales[start:stop], out=values)
            values *= ONE_127TH
            if y.dtype != np.float32:
                y[start:stop] = values

    share_blocks(decode, *codes.shape)
    return (y,), None
