"""NF4 by kernels."""

from __future__ import annotations

from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own import implements
from refpeft_cupy.own._arrays import blocks, contiguous, empty

THREADS, EIGHT = 256, 8
"""In a block; and how many weights a thread takes."""


def log2(blocksize: int) -> int:
    """Of a power of two."""
    return blocksize.bit_length() - 1


@implements("nf4.quantize")
def quantize(weight, *, blocksize, variant):
    """Eight weights for each lane, so that a warp takes 256: four blocks of 64, or part of a larger one."""
    weight, n = contiguous(weight), weight.shape[0]
    count = blocks(n, blocksize)
    packed, absmax = empty(weight, (n + 1) // 2, "uint8"), empty(weight, count, "float32")
    launch(
        kernel("nf4_quantize", weight.dtype.name),
        (blocks(count * min(blocksize // EIGHT, 32), THREADS),),
        (THREADS,),
        (weight, packed, absmax, n, log2(blocksize), variant == "bitsandbytes-cpu"),
    )
    return (packed, absmax), None


def decoded(packed, absmax, shape, blocksize, dtype):
    """The weights of that shape, a thread for every eight; both arrays are contiguous."""
    y = empty(packed, shape, dtype)
    arguments = (packed, absmax, y, y.size, log2(blocksize))
    launch(kernel("nf4_dequantize", dtype), (blocks(y.size, EIGHT * THREADS),), (THREADS,), arguments)
    return y


@implements("nf4.dequantize")
def dequantize(packed, absmax, *, n, blocksize, dtype):
    """A vector of n weights."""
    return (decoded(contiguous(packed), contiguous(absmax), n, blocksize, dtype),), None


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
