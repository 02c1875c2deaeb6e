"""(IA)^3 in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("ia3.linear")
def linear(x, weight, scale, bias=None, *, side="output"):
    """The layer's outputs scaled, or its inputs."""
    if side == "output":
        return scale * F.linear(x, weight, bias)
    return F.linear(scale * x, weight, bias)


@implements("ia3.merge")
def merge(weight, scale, *, side="output"):
    """Rows scaled, or columns."""
    return weight * scale.unsqueeze(1) if side == "output" else weight * scale
