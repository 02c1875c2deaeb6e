"""Lily in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("lily.linear")
def linear(x, weight, a, b, router, bias=None, *, scaling):
    """The base layer, and LoRA with the mixed B; the mean over no token is none."""
    h = F.linear(x, a)
    shares = F.linear(h, router).softmax(-1).flatten(0, -2) if x.dim() > 1 else F.linear(h, router).softmax(-1)[None]
    mixed = torch.einsum("e,ero->ro", shares.sum(0) / max(1, len(shares)), b)
    return F.linear(x, weight, bias) + scaling * (h @ mixed)
