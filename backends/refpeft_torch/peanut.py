"""PEANuT in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


def delta(weight, first, encoders, decoders, last, scaling):
    """The tower's answer to the columns of the weight."""
    h = F.relu(F.linear(weight.T, first))
    levels = []
    for encoder in encoders:
        levels.append(h)
        h = F.relu(F.linear(h, encoder))
    for decoder in decoders:
        h = F.relu(F.linear(h, decoder)) + levels.pop()
    return (F.linear(h, last) * scaling).T


@implements("peanut.linear")
def linear(x, weight, first, encoders, decoders, last, bias=None, *, scaling):
    """The base layer and the update, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, delta(weight, first, encoders, decoders, last, scaling))


@implements("peanut.merge")
def merge(weight, first, encoders, decoders, last, *, scaling):
    """The weight with the update in it."""
    return weight + delta(weight, first, encoders, decoders, last, scaling)
