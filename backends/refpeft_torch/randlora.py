"""RandLoRA in torch."""

import torch

from refpeft_torch.autograd import implements
from refpeft_torch.factored import adapted


def factors(weight, base_a, base_b, lambdas, gammas, scaling, variant):
    """A and B, the scaled shared basis on the shorter side."""
    short = torch.einsum("rn,rs,ns->rns", lambdas, base_a, gammas).flatten(0, 1)
    long = (base_b if variant == "peft" else base_b.transpose(1, 2)).flatten(1) * scaling
    return (short, long) if weight.shape[0] >= weight.shape[1] else (long.T, short.T)


@implements("randlora.linear")
def linear(x, weight, base_a, base_b, lambdas, gammas, bias=None, *, scaling, variant="paper"):
    """The base layer, and the path through the bases beside it."""
    return adapted(x, weight, bias, *factors(weight, base_a, base_b, lambdas, gammas, scaling, variant))


@implements("randlora.merge")
def merge(weight, base_a, base_b, lambdas, gammas, *, scaling, variant="paper"):
    """The weight with the update in it."""
    a, b = factors(weight, base_a, base_b, lambdas, gammas, scaling, variant)
    return weight + b @ a
