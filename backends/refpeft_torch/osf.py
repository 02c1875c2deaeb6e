"""OSF in torch: the gradients are projected by hooks."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("osf.linear")
def linear(x, weight, u, s, v, high_u, high_v, bias=None):
    """The frozen part, and the path through the trained triplets beside it."""
    high_u, high_v = high_u.detach(), high_v.detach()
    u = _hooked(u, lambda du: du - high_u @ (high_u.T @ du))
    v = _hooked(v, lambda dv: dv - (dv @ high_v.T) @ high_v)
    return F.linear(x, weight, bias) + F.linear(F.linear(x, v) * s, u)


@implements("osf.merge")
def merge(weight, u, s, v):
    """The trained triplets added to the frozen part."""
    return weight + (u * s) @ v


def _hooked(tensor, project):
    """The tensor, whose gradient goes through ``project``."""
    seen = tensor.view_as(tensor)
    if seen.requires_grad:
        seen.register_hook(project)
    return seen
