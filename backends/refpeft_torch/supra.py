"""Supra in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.shira import sparse


@implements("supra.linear")
def linear(x, weight, values, places, a, b, bias=None, *, scaling):
    """The base layer, the sparse update and LoRA, side by side."""
    base = F.linear(x, weight, bias) + F.linear(x, sparse(weight, values, places))
    return base + scaling * F.linear(F.linear(x, a), b)


@implements("supra.merge")
def merge(weight, values, places, a, b, *, scaling):
    """Both updates in the weight."""
    return weight + sparse(weight, values, places) + scaling * (b @ a)
