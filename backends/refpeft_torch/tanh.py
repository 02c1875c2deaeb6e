"""The hyperbolic tangent in torch."""

import torch

from refpeft_torch.autograd import implements


@implements("nn.tanh")
def tanh(x):
    """``torch.tanh``."""
    return torch.tanh(x)
