"""A layer whose update is a product of two factors, in torch, and the look-up of what factors are assembled from."""

import torch
import torch.nn.functional as F


def adapted(x, weight, bias, a, b):
    """The base layer, and the path through the rank beside it."""
    return F.linear(x, weight, bias) + F.linear(F.linear(x, a), b)


def gathered(table, index):
    """``table[index]``, looked up in float32: the backward adds the gradients of repeated indices up in the table's dtype."""
    return table.to(torch.promote_types(table.dtype, torch.float32))[index].to(table.dtype)
