"""The rectified linear unit in torch."""

import torch

from refpeft_torch.autograd import implements


@implements("nn.relu")
def relu(x):
    """``torch.relu``."""
    return torch.relu(x)
