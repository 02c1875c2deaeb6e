"""TinyLoRA in torch."""

import torch

from refpeft_torch.autograd import implements
from refpeft_torch.factored import adapted


@implements("tinylora.linear")
def linear(x, weight, a, b, projections, v, bias=None):
    """The base layer, and the path through the rank beside it."""
    return adapted(x, weight, bias, a, b @ torch.einsum("m,mst->st", v, projections))


@implements("tinylora.merge")
def merge(weight, a, b, projections, v):
    """The weight with the update in it."""
    return weight + b @ torch.einsum("m,mst->st", v, projections) @ a
