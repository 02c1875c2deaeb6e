"""aLoRA as peft has it: a variant of its LoRA layer, which is told where the invocation begins."""

import torch

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, named, one_batch


@implements("alora.linear")
def linear(x, weight, a, b, offsets=None, bias=None, *, scaling):
    """``peft.tuners.lora.variants.ALoraLinearVariant``; no invocation is None there."""
    how = {"r": a.shape[0], "alora_invocation_tokens": (0,)}
    layer = around_linear(weight, bias, "LoraConfig", scaling=scaling, **how)
    starts = None if offsets is None else [offset or None for offset in offsets.flatten().tolist()]
    tensors = named(layer, weight, bias, {"lora_A": a, "lora_B": b})
    y = torch.func.functional_call(layer, tensors, (one_batch(x, 2),), {"alora_offsets": starts})
    return y.reshape(*x.shape[:-1], len(weight))
