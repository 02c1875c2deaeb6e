"""FP4 as bitsandbytes has it on the CPU: the reading ``bitsandbytes-cpu``, as for NF4."""

import bitsandbytes.functional as F

from refpeft_hf.declared import implements
from refpeft_hf.quantization.nf4 import decoded, reading


@implements("fp4.quantize", reading)
def quantize(weight, *, blocksize, variant):
    """``quantize_4bit``."""
    packed, state = F.quantize_4bit(weight, blocksize=blocksize, quant_type="fp4")
    return packed.reshape(-1), state.absmax


@implements("fp4.dequantize")
def dequantize(packed, absmax, *, n, blocksize, dtype):
    """``dequantize_4bit``."""
    return decoded(packed, absmax, n, blocksize, dtype, "fp4")
