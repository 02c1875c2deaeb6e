"""Double quantisation: a code is found by bisection among the midpoints, or looked up by bin as bitsandbytes does."""

from __future__ import annotations

import functools

import numpy as np

from refpeft.ops import dynamic8
from refpeft_cpu.nf4 import LEAST_DIVISOR

CODEWORDS = dynamic8.dynamic_map().astype(np.float32)
BOUNDS = np.array(dynamic8.midpoints(), np.float32)


def quantize(absmax, offset, *, variant, residuals=True):
    """Blocks of 256; a value on a midpoint gets the lower code."""
    m = absmax.size
    d = np.pad(absmax - offset, (0, -m % 256)).reshape(-1, 256)
    absmax2 = np.max(np.abs(d), axis=1, initial=0)[:, None]
    if variant == "paper":
        scaled = d * (1 / np.maximum(absmax2, LEAST_DIVISOR))
        codes = np.searchsorted(BOUNDS, np.clip(scaled, -1, 1))
    else:
        scaled = d * (1 / np.where(absmax2 > 0, absmax2, 1))
        bins = ((np.clip(scaled, -1, 1) + 1) * np.float32(0.5) * 65535 + np.float32(0.5)).astype(np.intp)
        codes = np.where(absmax2 > 0, _code_of_bin()[bins], 0)
    return (codes.reshape(-1)[:m].astype(np.uint8), absmax2.reshape(-1)), None


@functools.cache
def _code_of_bin():
    return np.searchsorted(dynamic8.bins(), np.arange(65536), side="right").astype(np.uint8)


def dequantize(codes, absmax2, offset, *, residuals=True):
    """The codeword times its block's maximum, and the offset."""
    m = codes.size
    blocks = CODEWORDS[np.pad(codes, (0, -m % 256))].reshape(-1, 256)
    return ((blocks * absmax2[:, None] + offset).reshape(-1)[:m],), None
