"""DVoRA in torch."""

import torch.nn.functional as F

from refpeft_torch import dora
from refpeft_torch.autograd import implements


@implements("dvora.linear")
def linear(x, weight, a, b, lambda_d, lambda_b, magnitude, bias=None, mask=None, *, keep=1.0, norm="detached"):
    """VeRA's path, a vector after each matrix, and DoRA's factor on it and on the base layer's output."""
    _, factor = dora.factors(weight, lambda_d[:, None] * a, lambda_b[:, None] * b, magnitude, 1.0, norm)
    kept = x if mask is None else x * mask / keep
    update = lambda_b * F.linear(lambda_d * F.linear(kept, a), b)
    if mask is None:
        y = factor * (F.linear(x, weight) + update)
    else:
        y = F.linear(x, weight) + (factor - 1) * F.linear(kept, weight) + factor * update
    return y if bias is None else y + bias


@implements("dvora.merge")
def merge(weight, a, b, lambda_d, lambda_b, magnitude, *, norm="detached"):
    """Each row of the moved weight, stretched to its magnitude."""
    directed, factor = dora.factors(weight, lambda_d[:, None] * a, lambda_b[:, None] * b, magnitude, 1.0, norm)
    return factor[:, None] * directed
