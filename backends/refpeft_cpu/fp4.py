"""FP4: a codeword's code is found by its rank, and on which side of a bound a tie falls depends on the variant."""

from __future__ import annotations

import numpy as np

from refpeft.ops.fp4 import ASCENDING, CODEBOOK, MIDPOINTS, STEPS
from refpeft_cpu import four_bit
from refpeft_cpu.decoding import decoded, pairs_of

PAIRS = pairs_of(CODEBOOK)


def _codes(ascending) -> np.ndarray:
    """Two codes in a byte from two ranks in a byte."""
    return (np.repeat(ascending, 16) << 4 | np.tile(ascending, 16)).astype(np.uint8)


FORMATS = {
    "bitsandbytes-cpu": four_bit.Format(
        tuple((np.greater, np.float32(m)) for m in MIDPOINTS), _codes(ASCENDING["bitsandbytes-cpu"]), floored=True
    ),
    "sign-magnitude": four_bit.Format(
        (
            *((np.greater_equal, np.float32(-m)) for m in STEPS[::-1]),
            (np.greater_equal, np.float32(0)),
            *((np.greater, np.float32(m)) for m in STEPS),
        ),
        _codes(ASCENDING["sign-magnitude"]),
    ),
}


def quantize(weight, *, blocksize, variant, residuals=True):
    """Packed codes, and maxima."""
    return four_bit.quantize(weight, blocksize, FORMATS[variant]), None


def dequantize(packed, absmax, *, n, blocksize, dtype, residuals=True):
    """Every weight, rounded to ``dtype``."""
    return (decoded(packed, PAIRS, absmax, n, blocksize, dtype),), None
