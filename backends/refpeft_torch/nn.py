"""Plain layers in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("nn.linear")
def linear(x, weight, bias=None):
    """``torch.nn.functional.linear`` itself."""
    return F.linear(x, weight, bias)
