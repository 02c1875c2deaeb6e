"""Dynamic 8-bit quantisation: the nearest codeword, or that of bitsandbytes' bin."""

from __future__ import annotations

import functools

import numpy as np

from refpeft.ops import dynamic8
from refpeft_cpu import decoding
from refpeft_cpu.chunks import blocks_of, largest, over_largest, share_blocks, whole
from refpeft_cpu.nearest import BINS, Nearest


def quantize(weight, *, blocksize, signed, variant, residuals=True):
    """Codes, and maxima."""
    return encode(weight, blocksize, signed, variant), None


def encode(x, blocksize, signed, variant):
    """Codes and maxima of a flat array."""
    n, x = x.size, whole(x, blocksize)
    codes, absmax = np.empty(x.size, np.uint8), np.empty(x.size // blocksize, np.float32)

    def work(chunks, step):
        room = np.empty((step, blocksize), np.float32)
        for start, stop in chunks:
            v, found = room[: stop - start], codes[start * blocksize : stop * blocksize]
            encode_blocks(blocks_of(x, start, stop, blocksize), v, found, absmax[start:stop], signed, variant)

    share_blocks(work, absmax.size, blocksize)
    return codes[:n], absmax


def encode_blocks(x, v, codes, absmax, signed, variant):
    """Those of a chunk's rows; v is room of their shape."""
    if variant == "paper":
        over_largest(x, v, absmax)
        nearest(signed).find(np.clip(v, -1, 1, out=v).reshape(-1), codes)
        return
    largest(x, v, absmax)
    np.multiply(x, (1 / np.where(absmax > 0, absmax, 1))[:, None], out=v)
    scaled = np.clip(np.nan_to_num(v, copy=False, nan=-1), -1, 1, out=v)
    bins = ((scaled + 1) * np.float32(0.5)).astype(np.float64) * BINS
    found = np.take(_code_of_bin(signed), (bins + 0.5).astype(np.float32).astype(np.intp))
    codes[...] = np.where((absmax > 0)[:, None], found, 0).reshape(-1)


@functools.cache
def nearest(signed):
    """Codes of the map."""
    return Nearest.among(dynamic8.midpoints(signed))


@functools.cache
def _code_of_bin(signed):
    """bitsandbytes' table: the code of each bin's own number."""
    return np.searchsorted(dynamic8.bins(signed), np.arange(BINS + 1), side="right").astype(np.uint8)


@functools.cache
def codewords(signed):
    """The map, in float32."""
    return dynamic8.dynamic_map(signed).astype(np.float32)


def dequantize(codes, absmax, *, blocksize, signed, dtype, residuals=True):
    """The codeword times its block's maximum, rounded to ``dtype``."""
    return (decoded(codes, absmax, blocksize, signed, dtype),), None


def decoded(codes, absmax, blocksize, signed, dtype="float32"):
    """The numbers."""
    return decoding.decoded(codes, codewords(signed), absmax, codes.size, blocksize, dtype)
