"""DEFT in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


def delta(weight, subspace, fill, scaling, projection, variant):
    """The subspace taken out, and filled anew."""
    taken = (F.relu(subspace) if projection == "relu" else subspace).T @ weight
    return subspace @ (fill * scaling - taken) if variant == "deft" else -(subspace @ taken)


@implements("deft.linear")
def linear(x, weight, subspace, fill, bias=None, *, scaling, projection="relu", variant="deft"):
    """The base layer and the update, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, delta(weight, subspace, fill, scaling, projection, variant))


@implements("deft.merge")
def merge(weight, subspace, fill, *, scaling, projection="relu", variant="deft"):
    """The weight with the update in it."""
    return weight + delta(weight, subspace, fill, scaling, projection, variant)
