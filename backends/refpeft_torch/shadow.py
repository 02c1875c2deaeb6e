"""Shadow in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.gelu import exact


@implements("shadow.inject")
def inject(x, shadow, down, up, mask=None, *, scaling, keep=1.0):
    """What x differs from its shadow by, through the rank."""
    difference = x - shadow
    if mask is not None:
        difference = (difference / keep).masked_fill(~mask, 0)
    return x + scaling * F.linear(F.linear(difference, down), up)


@implements("shadow.update")
def update(
    x,
    shadow,
    candidate_down,
    candidate_down_bias,
    candidate_up,
    candidate_up_bias,
    gate_down,
    gate_down_bias,
    gate_up,
    gate_up_bias,
):
    """The shadow moved towards the candidate as far as the gate is open."""
    candidate = F.linear(exact(F.linear(x, candidate_down, candidate_down_bias)), candidate_up, candidate_up_bias)
    gate = torch.sigmoid(F.linear(exact(F.linear(x, gate_down, gate_down_bias)), gate_up, gate_up_bias))
    return (1 - gate) * shadow + gate * candidate
