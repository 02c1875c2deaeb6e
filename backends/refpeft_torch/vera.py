"""VeRA and PVeRA in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("vera.linear")
def linear(x, weight, a, b, lambda_d, lambda_b, bias=None, mask=None, *, keep=1.0):
    """The base layer and two random matrices, a vector after each."""
    kept = x if mask is None else x * mask / keep
    return F.linear(x, weight, bias) + lambda_b * F.linear(lambda_d * F.linear(kept, a), b)


@implements("vera.merge")
def merge(weight, a, b, lambda_d, lambda_b):
    """The weight with the update in it."""
    return weight + (lambda_b[:, None] * b) @ (lambda_d[:, None] * a)


@implements("pvera.linear")
def probabilistic(x, weight, a, b, lambda_d, lambda_b, noise=None, bias=None, mask=None, *, keep=1.0):
    """The same, with a sample between the matrices."""
    kept = x if mask is None else x * mask / keep
    mean, variance = (lambda_d * F.linear(kept, a)).chunk(2, dim=-1)
    sample = mean if noise is None else mean + noise * (0.5 * variance).exp()
    return F.linear(x, weight, bias) + lambda_b * F.linear(sample, b)
