"""NF4: a code is its codeword's rank."""

from __future__ import annotations

import numpy as np

from refpeft.ops.nf4 import CODEBOOK, MIDPOINTS
from refpeft_cpu import decoding, four_bit

BOUNDS = tuple((np.greater, np.float32(m)) for m in MIDPOINTS)
PAIRS = decoding.pairs_of(CODEBOOK)


def quantize(weight, *, blocksize, variant, residuals=True):
    """Packed codes, and maxima."""
    return four_bit.quantize(weight, blocksize, four_bit.Format(BOUNDS, floored=variant == "bitsandbytes-cpu")), None


def dequantize(packed, absmax, *, n, blocksize, dtype, residuals=True):
    """Every weight, rounded to ``dtype``."""
    return (decoded(packed, absmax, n, blocksize, dtype),), None


def decoded(packed, absmax, n, blocksize, dtype):
    """The n weights."""
    return decoding.decoded(packed, PAIRS, absmax, n, blocksize, dtype)
