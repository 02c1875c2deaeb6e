"""DoRA in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


def factors(weight, a, b, magnitude, scaling, norm):
    """The weight whose direction counts, and what each of its rows is multiplied by."""
    directed = weight + scaling * (b @ a)
    length = torch.linalg.vector_norm(directed, dim=1)
    if norm == "detached":
        length = length.detach()
    there = length > 0
    return directed, torch.where(there, magnitude / length.where(there, torch.ones_like(length)), 0)


@implements("dora.linear")
def linear(x, weight, a, b, magnitude, bias=None, mask=None, *, scaling, keep=1.0, norm="detached"):
    """The base layer and the adapter's path beside it, so that dropout acts on that path alone."""
    _, factor = factors(weight, a, b, magnitude, scaling, norm)
    kept = x if mask is None else x * mask / keep
    update = scaling * F.linear(F.linear(kept, a), b)
    if mask is None:
        y = factor * (F.linear(x, weight) + update)
    else:
        y = F.linear(x, weight) + (factor - 1) * F.linear(kept, weight) + factor * update
    return y if bias is None else y + bias


@implements("dora.merge")
def merge(weight, a, b, magnitude, *, scaling, norm="detached"):
    """Each row of the moved weight, stretched to its magnitude."""
    directed, factor = factors(weight, a, b, magnitude, scaling, norm)
    return factor[:, None] * directed
