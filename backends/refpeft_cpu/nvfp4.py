"""NVFP4: the blocks' scales are rounded to E4M3 in their float32 bits."""

from __future__ import annotations

import numpy as np

from refpeft.ops._e2m1 import LARGEST as LARGEST_ELEMENT
from refpeft.ops.nvfp4 import BLOCKSIZE, E4M3_NUMBERS, LARGEST, LEAST_SCALE
from refpeft_cpu import e2m1
from refpeft_cpu.decoding import decoded

NUMBERS = E4M3_NUMBERS.astype(np.float32)
LEAST_NORMAL, STEPS_TO_ONE = np.float32(2.0**-6), np.float32(2.0**9)
"""Of E4M3: below the first its numbers are multiples of one over the second."""


def scale(weight, *, residuals=True):
    """max |w| / (6 · 448)."""
    x = weight.astype(np.float32, copy=False)
    top = np.maximum(np.max(x), -np.min(x)) / np.float32(LARGEST_ELEMENT * LARGEST)
    return (np.asarray(np.maximum(top, np.float32(LEAST_SCALE))),), None


def quantize(weight, scale, *, residuals=True):
    """Packed codes, and codes of the blocks' scales."""
    scale = np.float32(scale)

    def scaled(x, maxima, out):
        codes = _nearest_scale(maxima / (np.float32(LARGEST_ELEMENT) * scale)).astype(np.uint8)
        divisors = NUMBERS[codes] * scale
        np.divide(x, np.where(divisors > 0, divisors, np.inf)[:, None], out=out)
        return codes, out

    return e2m1.quantized(weight, BLOCKSIZE, scaled), None


def _nearest_scale(s):
    """Codes of the nearest E4M3 numbers, ties to even: to the bits is added half of the last one kept, less one where that is
    zero, and the rest is cut off.
    """
    s = np.minimum(s, np.float32(LARGEST))
    bits = s.view(np.int32)
    normal = ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3)
    return np.where(s < LEAST_NORMAL, np.rint(s * STEPS_TO_ONE), normal)


def dequantize(packed, scales, scale, *, n, dtype, residuals=True):
    """Every weight, rounded to ``dtype``."""
    with np.errstate(over="ignore"):
        products = NUMBERS[scales] * np.float32(scale)
    return (decoded(packed, e2m1.PAIRS, products, n, BLOCKSIZE, dtype),), None
