"""Codes of 4 bits in blocks: what NF4's and FP4's kernels are launched by."""

from __future__ import annotations

from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own._arrays import blocks, contiguous, empty

THREADS, EIGHT = 256, 8
"""In a block; and how many weights a thread takes."""


def log2(blocksize: int) -> int:
    """Of a power of two."""
    return blocksize.bit_length() - 1


def quantized(codebook, weight, blocksize, variant):
    """Codes and maxima. Eight weights for each lane, so that a warp takes 256: four blocks of 64, or part of a larger one."""
    weight, n = contiguous(weight), weight.shape[0]
    count = blocks(n, blocksize)
    packed, absmax = empty(weight, (n + 1) // 2, "uint8"), empty(weight, count, "float32")
    launch(
        kernel(f"{codebook}_quantize", weight.dtype.name),
        (blocks(count * min(blocksize // EIGHT, 32), THREADS),),
        (THREADS,),
        (weight, packed, absmax, n, log2(blocksize), variant == "bitsandbytes-cpu"),
    )
    return packed, absmax


def decoded(codebook, packed, absmax, shape, blocksize, dtype):
    """The weights of that shape, a thread for every eight."""
    y = empty(packed, shape, dtype)
    arguments = (contiguous(packed), contiguous(absmax), y, y.size, log2(blocksize))
    launch(kernel(f"{codebook}_dequantize", dtype), (blocks(y.size, EIGHT * THREADS),), (THREADS,), arguments)
    return y
