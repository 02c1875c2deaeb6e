"""BD-LoRA in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


def blockwise(x, weight, blocks):
    """Each slice of x through its own block of rows."""
    return torch.einsum("...km,kpm->...kp", x.unflatten(-1, (blocks, -1)), weight.unflatten(0, (blocks, -1))).flatten(
        -2
    )


@implements("bdlora.linear")
def linear(x, weight, a, b, bias=None, *, scaling, blocks_a=1, blocks_b=1):
    """The base layer and two block-diagonal ones, side by side."""
    return F.linear(x, weight, bias) + scaling * blockwise(blockwise(x, a, blocks_a), b, blocks_b)


@implements("bdlora.merge")
def merge(weight, a, b, *, scaling, blocks_a=1, blocks_b=1):
    """The weight with the update in it."""
    left, right = (torch.block_diag(*m.chunk(k)) for m, k in ((b, blocks_b), (a, blocks_a)))
    return weight + scaling * (left @ right)
