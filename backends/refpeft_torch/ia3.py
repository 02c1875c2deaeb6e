"""(IA)^3 in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.precision import widened


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


@implements("ia3.conv2d")
def conv2d(x, weight, scale, bias=None, *, side="output", **how):
    """The layer's channels scaled, or those of its images."""
    dtype = x.dtype
    x, weight, scale, bias = widened(x, weight, scale, bias)
    scale = scale[:, None, None]
    if side == "output":
        return (scale * F.conv2d(x, weight, bias, **how)).to(dtype)
    return F.conv2d(scale * x, weight, bias, **how).to(dtype)


@implements("ia3.conv2d_merge")
def conv2d_merge(weight, scale, *, side="output", groups=1):
    """Filters scaled, or the channels that each group of them meets."""
    if side == "output":
        return weight * scale[:, None, None, None]
    filters = weight.unflatten(0, (groups, weight.shape[0] // groups))
    return (filters * scale.view(groups, 1, -1, 1, 1)).flatten(0, 1)
