"""NF4 and its double quantisation as bitsandbytes has them, on the CPU.

Its reading is the variant ``bitsandbytes-cpu``. Block maxima are quantised as ``quantize_4bit(compress_statistics=True)``
does it, with `quantize_blockwise` and `dequantize_blockwise`, so that the offset, a mean that depends on the number of
threads, can be given.
"""

import bitsandbytes.functional as F
import torch

from refpeft_hf.declared import implements, only

reading = only("variant", "bitsandbytes-cpu", "bitsandbytes has the reading 'bitsandbytes-cpu' only")
NESTED = 256


@implements("nf4.quantize", reading)
def quantize(weight, *, blocksize, variant):
    """``quantize_4bit``."""
    packed, state = F.quantize_4bit(weight, blocksize=blocksize, quant_type="nf4")
    return packed.reshape(-1), state.absmax


@implements("nf4.dequantize")
def dequantize(packed, absmax, *, n, blocksize, dtype):
    """``dequantize_4bit``."""
    return decoded(packed, absmax, n, blocksize, dtype, "nf4")


def decoded(packed, absmax, n, blocksize, dtype, kind):
    """A matrix of one row."""
    return F.dequantize_4bit(packed.unsqueeze(1), state(absmax, (1, n), blocksize, dtype, kind)).reshape(-1)


def state(absmax, shape, blocksize, dtype, kind):
    """What bitsandbytes keeps beside the codes of a matrix."""
    return F.QuantState(
        absmax=absmax,
        shape=torch.Size(shape),
        code=F.get_4bit_type(kind, device=absmax.device),
        blocksize=blocksize,
        quant_type=kind,
        dtype=getattr(torch, dtype),
    )


@implements("nf4.offset")
def offset(absmax):
    """``torch.mean``, as in ``quantize_4bit``."""
    return absmax.mean()


@implements("nf4.double_quantize", reading)
def double_quantize(absmax, offset, *, variant):
    """``quantize_blockwise`` of what is left of the maxima."""
    codes, state = F.quantize_blockwise(absmax - offset, blocksize=NESTED)
    return codes, state.absmax


@implements("nf4.double_dequantize")
def double_dequantize(codes, absmax2, offset):
    """``dequantize_blockwise``, and the offset."""
    state = F.QuantState(absmax=absmax2, code=F.create_dynamic_map(), blocksize=NESTED, dtype=torch.float32)
    return F.dequantize_blockwise(codes, state) + offset
