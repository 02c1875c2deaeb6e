"""8-bit numbers in blocks: the dynamic maps, in the reading ``bitsandbytes-cpu``, and decoding with any codebook.

Encoding with any codebook is not here: on the CPU it goes through the same 65536 bins and gives no nearest codewords.
"""

import bitsandbytes.functional as F
import torch

from refpeft_hf.declared import implements
from refpeft_hf.quantization.nf4 import reading


@implements("dynamic8.quantize", reading)
def quantize(weight, *, blocksize, signed, variant):
    """``quantize_blockwise``."""
    codes, state = F.quantize_blockwise(weight, code=F.create_dynamic_map(signed), blocksize=blocksize)
    return codes, state.absmax


@implements("dynamic8.dequantize")
def dequantize(codes, absmax, *, blocksize, signed, dtype):
    """``dequantize_blockwise`` with the map."""
    return _decoded(codes, absmax, F.create_dynamic_map(signed), blocksize, dtype)


@implements("codebook.dequantize")
def dequantize_any(codes, absmax, codebook, *, blocksize, dtype):
    """``dequantize_blockwise`` with a codebook, which it takes to have 256 codewords and looks up by code."""
    return _decoded(codes, absmax, codebook, blocksize, dtype)


def _decoded(codes, absmax, codebook, blocksize, dtype):
    state = F.QuantState(absmax=absmax, code=codebook, blocksize=blocksize, dtype=getattr(torch, dtype))
    return F.dequantize_blockwise(codes, state)
