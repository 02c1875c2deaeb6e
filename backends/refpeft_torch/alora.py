"""aLoRA in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("alora.linear")
def linear(x, weight, a, b, offsets=None, bias=None, *, scaling):
    """The update is computed for all tokens and kept for the last ones of each sequence."""
    base = F.linear(x, weight, bias)
    if offsets is None:
        return base
    tokens = x.shape[-2]
    active = torch.arange(tokens, device=x.device) >= tokens - offsets[..., None]
    update = F.linear(F.linear(x, a), b) * scaling
    return base + update.masked_fill(~active[..., None], 0)
