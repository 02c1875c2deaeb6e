"""MXFP4: a block's scale is read off the exponent field of its largest number, and its reciprocal written into one."""

from __future__ import annotations

import numpy as np

from refpeft.ops.mxfp4 import BLOCKSIZE, E8M0
from refpeft_cpu import e2m1
from refpeft_cpu.decoding import decoded


def quantize(weight, *, residuals=True):
    """Packed codes, and scales."""
    return e2m1.quantized(weight, BLOCKSIZE, _scaled), None


def _scaled(x, maxima, out):
    exponents = np.maximum((maxima.view(np.int32) >> 23) - 2, 0)
    np.multiply(x, ((254 - exponents) << 23).view(np.float32)[:, None], out=out)
    return exponents, x


def dequantize(packed, scales, *, n, dtype, residuals=True):
    """Every weight, rounded to ``dtype``."""
    return (decoded(packed, e2m1.PAIRS, E8M0.astype(np.float32)[scales], n, BLOCKSIZE, dtype),), None
