"""QLoRA's layer as peft has it over bitsandbytes' ``Linear4bit`` in training: ``matmul_4bit``, and the update beside it."""

import bitsandbytes
import torch.nn.functional as F

from refpeft_hf.declared import implements
from refpeft_hf.quantization.nf4 import state


@implements("qlora.linear", lacks={"float64": "bitsandbytes dequantises to float32 at most"})
def linear(x, packed, absmax, a, b, bias=None, *, scaling, blocksize, dtype):
    """``matmul_4bit``, as ``Linear4bit.forward`` calls it; peft's ``lora_B(lora_A(x)) * scaling``."""
    of_weight = state(absmax, (b.shape[0], a.shape[1]), blocksize, dtype, "nf4")
    y = bitsandbytes.matmul_4bit(x, packed.unsqueeze(1), quant_state=of_weight, bias=bias)
    return y + F.linear(F.linear(x, a), b) * scaling
