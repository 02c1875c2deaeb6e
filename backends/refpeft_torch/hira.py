"""HiRA in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("hira.linear")
def linear(x, weight, a, b, bias=None):
    """The base layer and the multiplied weight, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, weight * (b @ a))


@implements("hira.merge")
def merge(weight, a, b):
    """The weight with the update in it."""
    return weight + weight * (b @ a)
