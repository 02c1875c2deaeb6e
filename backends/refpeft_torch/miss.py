"""MiSS in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.precision import widened


@implements("miss.linear")
def linear(x, weight, block, bias=None):
    """The shards of x are added up and meet the block once."""
    r, i = block.shape[0], x.shape[-1]
    shards = F.pad(x, (0, -i % r)).reshape(*x.shape[:-1], -(-i // r), r).sum(-2)
    return F.linear(x, weight, bias) + shards @ block.repeat(1, weight.shape[0] // block.shape[1])


@implements("miss.merge")
def merge(weight, block):
    """The block repeated over the weight, the last copy cut."""
    (o, i), (r, m) = weight.shape, block.shape
    return weight + block.T.repeat(o // m, -(-i // r))[:, :i]


def _bat(weight, block):
    """Each block of the weight times the matrix of its row of blocks, and that matrix, whose gradient adds up over the row."""
    dtype, (g, r, _) = weight.dtype, block.shape
    weight, block = widened(weight, block)
    blocks = weight.reshape(g, r, -1, r).transpose(1, 2)
    return (blocks @ block[:, None] + block[:, None]).transpose(1, 2).reshape(weight.shape).to(dtype)


@implements("miss_bat.linear")
def bat_linear(x, weight, block, bias=None):
    """The base layer and the update, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, _bat(weight, block))


@implements("miss_bat.merge")
def bat_merge(weight, block):
    """The weight with the update in it."""
    return weight + _bat(weight, block)
