"""C3A in torch: each circulant block from rolled copies of its kernel."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("c3a.linear")
def linear(x, weight, kernel, bias=None, *, normalised=False):
    """The base layer and the update, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, _delta(kernel, normalised))


@implements("c3a.merge")
def merge(weight, kernel, *, normalised=False):
    """The weight with the update in it."""
    return weight + _delta(kernel, normalised)


def _delta(kernel, normalised):
    p, q, b = kernel.shape
    blocks = torch.stack([torch.roll(kernel, s, dims=2) for s in range(b)], dim=2)
    full = blocks.permute(0, 2, 1, 3).reshape(p * b, q * b)
    return full / (q * b) if normalised else full
