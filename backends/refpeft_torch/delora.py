"""DeLoRA in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


def strengths(a, b, boundary, floor):
    """What each product of a column of b and a row of a is multiplied by."""
    long, wide = torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(b, dim=0)
    return boundary / len(a) / long.clamp(min=floor) / wide.clamp(min=floor)


@implements("delora.linear")
def linear(x, weight, a, b, boundary, norms=None, bias=None, *, floor=1e-4):
    """The base layer and the normalised low-rank path, side by side."""
    scaled = x if norms is None else x * norms
    return F.linear(x, weight, bias) + F.linear(F.linear(scaled, a) * strengths(a, b, boundary, floor), b)


@implements("delora.merge")
def merge(weight, a, b, boundary, norms=None, *, floor=1e-4):
    """The weight with the update in it."""
    update = b @ (strengths(a, b, boundary, floor)[:, None] * a)
    return weight + (update if norms is None else update * norms)
