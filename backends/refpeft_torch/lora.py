"""LoRA in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("lora.linear")
def linear(x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep=1.0):
    """The base layer and the scaled low-rank path, side by side."""
    kept = x if mask is None else x * mask / keep
    return F.linear(x, weight, bias) + scaling * F.linear(F.linear(kept, a), b, lora_bias)
