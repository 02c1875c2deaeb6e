"""NF4 by kernels."""

from __future__ import annotations

from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own import implements
from refpeft_cupy.own._arrays import blocks, contiguous, empty
from refpeft_cupy.own._four_bit import decoded, quantized


@implements("nf4.quantize")
def quantize(weight, *, blocksize, variant):
    """Codes and maxima of a vector."""
    return quantized("nf4", weight, blocksize, variant), None


@implements("nf4.dequantize")
def dequantize(packed, absmax, *, n, blocksize, dtype):
    """A vector of n weights."""
    return (decoded("nf4", packed, absmax, n, blocksize, dtype),), None


@implements("nf4.double_quantize")
def double_quantize(absmax, offset, *, variant):
    """A block of threads for each block of maxima."""
    absmax, offset, m = contiguous(absmax), contiguous(offset), absmax.shape[0]
    count = blocks(m, 256)
    codes, absmax2 = empty(absmax, m, "uint8"), empty(absmax, count, "float32")
    launch(
        kernel("nf4_double_quantize"),
        (count,),
        (256,),
        (absmax, offset, codes, absmax2, m, variant == "bitsandbytes-cpu"),
    )
    return (codes, absmax2), None


@implements("nf4.double_dequantize")
def double_dequantize(codes, absmax2, offset):
    """A thread for each maximum."""
    codes, absmax2, offset = contiguous(codes), contiguous(absmax2), contiguous(offset)
    m = codes.shape[0]
    absmax = empty(codes, m, "float32")
    launch(kernel("nf4_double_dequantize"), (blocks(m, 256),), (256,), (codes, absmax2, offset, absmax, m))
    return (absmax,), None
