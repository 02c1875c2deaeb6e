"""DeLoRA in torch.

Where a norm lies at its floor, what a product is multiplied by may exceed float16: the low-rank path is in float32.
"""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.precision import wide


def strengths(a, b, boundary, floor):
    """What each product of a column of b and a row of a is multiplied by."""
    rows, columns = torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(b, dim=0)
    return boundary / len(a) / rows.clamp(min=floor) / columns.clamp(min=floor)


@implements("delora.linear")
def linear(x, weight, a, b, boundary, norms=None, bias=None, *, floor=1e-4):
    """The base layer and the normalised low-rank path, side by side."""
    base = F.linear(x, weight, bias)
    x, a, b, boundary, norms = map(wide, (x, a, b, boundary, norms))
    scaled = x if norms is None else x * norms
    return (base + F.linear(F.linear(scaled, a) * strengths(a, b, boundary, floor), b)).to(base.dtype)


@implements("delora.merge")
def merge(weight, a, b, boundary, norms=None, *, floor=1e-4):
    """The weight with the update in it."""
    a, b, boundary, norms = map(wide, (a, b, boundary, norms))
    update = b @ (strengths(a, b, boundary, floor)[:, None] * a)
    return (weight + (update if norms is None else update * norms)).to(weight.dtype)
