"""Attention in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


def visible(q, k, mask, causal, offset):
    """Which keys each query sees, (*n, 1, s, t) or (s, t); None where all are."""
    if mask is not None:
        mask = mask.unsqueeze(-3)
    if causal:
        past = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(offset)
        mask = past if mask is None else mask & past
    return mask


@implements("nn.attention")
def attention(q, k, v, mask=None, *, scale, causal=False, offset=0):
    """``torch.nn.functional.scaled_dot_product_attention`` itself."""
    return attend(q, k, v, visible(q, k, mask, causal, offset), scale)


def attend(q, k, v, mask, scale):
    """Grouped heads, a boolean mask, any number of batch axes."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
