"""A block of Llama's decoder in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.decoder import rms_norm, rope, swiglu


@implements("nn.decoder_block")
def decoder_block(x, attn_norm, q, k, v, o, mlp_norm, gate, up, down, cos, sin, *, heads, kv_heads, eps=1e-6):
    """As ``LlamaDecoderLayer`` has it, with ``torch.nn.functional.scaled_dot_product_attention``."""

    def split(rows, count):
        return rows.unflatten(-1, (count, 2 * cos.shape[-1])).transpose(-2, -3)

    n = rms_norm(x, attn_norm, eps=eps)
    queries = rope(split(F.linear(n, q), heads), cos, sin)
    keys = rope(split(F.linear(n, k), kv_heads), cos, sin)
    values = split(F.linear(n, v), kv_heads)
    attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    z = x + F.linear(attended.transpose(-2, -3).flatten(-2), o)
    m = rms_norm(z, mlp_norm, eps=eps)
    return z + F.linear(swiglu(F.linear(m, gate), F.linear(m, up)), down)
