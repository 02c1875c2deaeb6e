"""AdaMSS in torch."""

import torch

from refpeft_torch.autograd import implements
from refpeft_torch.factored import adapted, gathered


def _rows(inner, outer, group):
    return torch.einsum("oq,oqr->or", outer, gathered(inner, group))


@implements("adamss.linear")
def linear(x, weight, basis, inner, outer, group, bias=None):
    """The base layer, and the path through the subspaces beside it."""
    return adapted(x, weight, bias, basis, _rows(inner, outer, group))


@implements("adamss.merge")
def merge(weight, basis, inner, outer, group):
    """The weight with the update in it."""
    return weight + _rows(inner, outer, group) @ basis
