"""C3A in torch: each circulant block from rolled copies of its kernel."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.precision import divided, wide


@implements("c3a.linear")
def linear(x, weight, kernel, bias=None, *, normalised=False):
    """The base layer and the update, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, _delta(kernel, normalised))


@implements("c3a.merge")
def merge(weight, kernel, *, normalised=False):
    """The weight with the update in it."""
    return weight + _delta(kernel, normalised)


def _delta(kernel, normalised):
    """In float32 at least: autograd adds the gradients of the copies up in the dtype of the kernel."""
    p, q, b = kernel.shape
    first = wide(kernel)
    blocks = torch.stack([torch.roll(first, s, dims=2) for s in range(b)], dim=2)
    full = blocks.permute(0, 2, 1, 3).reshape(p * b, q * b)
    return (divided(full, q * b) if normalised else full).to(kernel.dtype)
