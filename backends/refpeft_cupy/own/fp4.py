"""FP4 by kernels."""

from __future__ import annotations

from refpeft_cupy.own import implements
from refpeft_cupy.own._four_bit import decoded, quantized


@implements("fp4.quantize")
def quantize(weight, *, blocksize, variant):
    """Codes and maxima of a vector."""
    return quantized("fp4", weight, blocksize, variant), None


@implements("fp4.dequantize")
def dequantize(packed, absmax, *, n, blocksize, dtype):
    """A vector of n weights."""
    return (decoded("fp4", packed, absmax, n, blocksize, dtype),), None
