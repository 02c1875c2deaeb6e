"""BOFT in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.precision import wide, widened
from refpeft_torch.rotation import cayley, turn


def rotations(q, variant):
    """(f, m, block, block): each a rotation through the skew part of its Q."""
    full = wide(q)
    return cayley(0.5 * (full - full.mT), variant).to(q.dtype)


def order(size, block, level, device):
    """Where each feature comes from when the two halves of every run of 2^level blocks are interleaved by half blocks."""
    places = torch.arange(size, device=device)
    if level == 0:
        return places
    return places.view(-1, 2, 2**level, block // 2).transpose(1, 2).flatten()


def butterfly(x, r, level):
    """x B for the factor of that level."""
    there = order(x.shape[-1], r.shape[-1], level, x.device)
    return turn(x[..., there], r)[..., there.argsort()]


@implements("boft.linear")
def linear(x, weight, q, scale, bias=None, *, block, factors=1, variant="paper"):
    """The base layer on turned inputs, its outputs scaled before the bias."""
    r = rotations(q, variant)
    for level in reversed(range(factors)):
        x = butterfly(x, r[level], level)
    y = scale * F.linear(x, weight)
    return y if bias is None else y + bias


@implements("boft.merge")
def merge(weight, q, scale, *, block, factors=1, variant="paper"):
    """The neurons turned the other way, factor by factor, and scaled."""
    r = rotations(q, variant)
    for level in range(factors):
        weight = butterfly(weight, r[level].mT, level)
    return scale.unsqueeze(1) * weight


@implements("boft.conv2d")
def conv2d(x, weight, q, scale, bias=None, *, block, factors=1, variant="paper", **how):
    """The base layer with its filters turned and scaled."""
    dtype = x.dtype
    x, weight, q, scale, bias = widened(x, weight, q, scale, bias)
    kernel = merge(weight.flatten(1), q, scale, block=block, factors=factors, variant=variant).view_as(weight)
    return F.conv2d(x, kernel, bias, **how).to(dtype)
