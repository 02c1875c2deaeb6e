"""RoAd in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


def columns(theta, alpha, group, variant):
    """Factors of the features themselves and of their partners, (o,) each."""
    if variant == "road_4":
        theta, alpha = (v.view(-1, 2, group).transpose(0, 1).flatten(1) for v in (theta, alpha))
        return alpha[0] * theta[0].cos(), alpha[1] * theta[1].sin()
    if variant == "road_1":
        theta, alpha = (v.view(-1, group // 2).repeat_interleave(2, 0).flatten() for v in (theta, alpha))
    return alpha * theta.cos(), alpha * theta.sin()


def apply(h, theta, alpha, group, variant):
    """R h along the last axis."""
    own, others = columns(theta, alpha, group, variant)
    first, second = h.unflatten(-1, (-1, 2, group // 2)).unbind(-2)
    return h * own + torch.stack([-second, first], -2).flatten(-3) * others


@implements("road.linear")
def linear(x, weight, theta, alpha, bias=None, *, group, variant="road_1"):
    """The base layer's output, pair by pair."""
    return apply(F.linear(x, weight, bias), theta, alpha, group, variant)


@implements("road.merge")
def merge(weight, theta, alpha, *, group, variant="road_1"):
    """Rows in pairs."""
    return apply(weight.T, theta, alpha, group, variant).T
