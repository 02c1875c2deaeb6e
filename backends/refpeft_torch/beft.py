"""BEFT in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("beft.linear")
def linear(x, weight, shift, bias=None):
    """The layer, and another bias."""
    return F.linear(x, weight, bias) + shift
