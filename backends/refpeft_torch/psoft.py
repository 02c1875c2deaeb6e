"""PSOFT in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.rotation import rotation


def delta(a, b, skew, alpha, beta, scaling, variant, terms):
    """What turning the principal subspace changes in the weight."""
    r = torch.diag(beta) @ rotation(skew, len(alpha), variant, terms) @ torch.diag(alpha)
    return scaling * (b @ (r - torch.eye(len(r), dtype=r.dtype, device=r.device)) @ a)


@implements("psoft.linear")
def linear(x, weight, a, b, skew, alpha, beta, bias=None, *, scaling, variant="paper", terms=5):
    """The base layer and the update, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, delta(a, b, skew, alpha, beta, scaling, variant, terms))


@implements("psoft.merge")
def merge(weight, a, b, skew, alpha, beta, *, scaling, variant="paper", terms=5):
    """The weight with the update in it."""
    return weight + delta(a, b, skew, alpha, beta, scaling, variant, terms)
