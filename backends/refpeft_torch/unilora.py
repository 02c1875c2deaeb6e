"""Uni-LoRA in torch."""

from refpeft_torch.autograd import implements
from refpeft_torch.factored import adapted, gathered


@implements("unilora.linear")
def linear(x, weight, theta, index_a, index_b, scale_a, scale_b, bias=None):
    """The base layer, and the path through the rank beside it."""
    return adapted(x, weight, bias, gathered(theta, index_a) * scale_a, gathered(theta, index_b) * scale_b)


@implements("unilora.merge")
def merge(weight, theta, index_a, index_b, scale_a, scale_b):
    """The weight with the update in it."""
    return weight + (gathered(theta, index_b) * scale_b) @ (gathered(theta, index_a) * scale_a)
