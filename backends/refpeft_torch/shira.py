"""SHiRA in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("shira.linear")
def linear(x, weight, values, places, bias=None):
    """The base layer and the sparse update, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, sparse(weight, values, places))


@implements("shira.merge")
def merge(weight, values, places):
    """The values added at their places."""
    return weight + sparse(weight, values, places)


def sparse(weight, values, places):
    """Values that meet at a place are added in at least float32, as sums are everywhere else."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    flat = torch.zeros(weight.numel(), dtype=wide.dtype, device=wide.device)
    return flat.index_put((places,), wide, accumulate=True).to(weight.dtype).reshape(weight.shape)
