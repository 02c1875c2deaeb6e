"""QLoRA's layer as peft has it over bitsandbytes' ``Linear4bit`` in training: ``matmul_4bit``, and the update beside it."""

import bitsandbytes
import bitsandbytes.functional as F
import torch

from refpeft_hf.declared import implements


@implements("qlora.linear", lacks={"float64": "bitsandbytes dequantises to float32 at most"})
def linear(x, packed, absmax, a, b, bias=None, *, scaling, blocksize, dtype):
    """``matmul_4bit`` with the transposed codes, as ``Linear4bit.forward`` calls it; peft's ``lora_B(lora_A(x)) * scaling``."""
    state = F.QuantState(
        absmax=absmax,
        shape=torch.Size((b.shape[0], a.shape[1])),
        code=F.get_4bit_type("nf4", device="cpu"),
        blocksize=blocksize,
        quant_type="nf4",
        dtype=getattr(torch, dtype),
    )
    y = bitsandbytes.matmul_4bit(x, packed.unsqueeze(1).t(), quant_state=state, bias=bias)
    return y + torch.nn.functional.linear(torch.nn.functional.linear(x, a), b) * scaling
