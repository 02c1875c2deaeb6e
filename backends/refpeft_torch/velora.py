"""VeLoRA in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("velora.linear")
def linear(x, weight, a, b, v, bias=None, *, scaling, groups, restore=1.0):
    """LoRA whose down-projection has the value of x, and for its weight the gradient of what was kept of x."""
    parts = x.unflatten(-1, (groups, -1))
    restored = (restore * (parts @ v)[..., None] * v).flatten(-2).detach()
    hidden = F.linear(x, a)
    routed = F.linear(restored, a) + F.linear(x, a.detach())
    hidden = hidden.detach() + (routed - routed.detach())
    return F.linear(x, weight, bias) + scaling * F.linear(hidden, b)
