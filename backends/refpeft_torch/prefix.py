"""Prefix tuning in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.attention import attend, visible
from refpeft_torch.autograd import implements


@implements("prefix.attention")
def attention(q, k, v, prefix_k, prefix_v, mask=None, *, causal=False, offset=0):
    """The same prefix for each sequence."""
    return behind(q, k, v, prefix_k, prefix_v, mask, causal, offset)


def behind(q, k, v, prefix_k, prefix_v, mask, causal, offset):
    """Attention over the prefix and the keys, a column of the mask for each virtual token."""
    p = prefix_k.shape[-2]
    mask = visible(q, k, mask, causal, offset)
    if mask is not None:
        mask = F.pad(mask, (p, 0), value=True)
    keys, values = (
        (torch.cat([a.expand(*b.shape[:-3], *a.shape[-3:]), b], dim=-2)) for a, b in ((prefix_k, k), (prefix_v, v))
    )
    return attend(q, keys, values, mask, None)


@implements("prefix.encode")
def encode(embedding, w1, b1, w2, b2):
    """Linear, tanh, linear."""
    return F.linear(torch.tanh(F.linear(embedding, w1, b1)), w2, b2)


@implements("prefix.cut")
def cut(flat, *, l, g, d):  # noqa: E741
    """As peft does it: a view of 2 l slots, which alternate between keys and values."""
    slots = flat.view(len(flat), 2 * l, g, d).permute(1, 2, 0, 3)
    return slots[0::2], slots[1::2]
