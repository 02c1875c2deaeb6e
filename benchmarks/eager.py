"""A decoder of Llama's type with LoRA on q and v in eager torch, as a careful user writes it by hand.

One product for q, k and v, one for gate and up, one for both A; torch's own RMS norm and attention; no module but the last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F


class Block(NamedTuple):
    """Frozen weights of a block, and the trained A (2r, d) and B (heads x head, r) of q and v."""

    norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    norm_inner: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    a: torch.nn.Parameter
    b_q: torch.nn.Parameter
    b_v: torch.nn.Parameter


class Eager(torch.nn.Module):
    """The decoder; ``base`` is transformers' ``LlamaForCausalLM``, ``arrays`` the A by the names of refpeft's sites."""

    def __init__(self, base, arrays: dict[str, np.ndarray], scaling: float, dropout: float):
        super().__init__()
        config, inside = base.config, base.model
        self.scaling, self.dropout, self.eps = scaling, dropout, config.rms_norm_eps
        self.heads, self.kv_heads, self.head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.table, self.norm, self.logit = (
            w.data for w in (inside.embed_tokens.weight, inside.norm.weight, base.lm_head.weight)
        )
        self.blocks = [self._block(i, layer, arrays) for i, layer in enumerate(inside.layers)]
        self.trained = torch.nn.ParameterList(p for block in self.blocks for p in (block.a, block.b_q, block.b_v))
        at = torch.arange(config.max_position_embeddings)
        self.cos, self.sin = (t[0] for t in inside.rotary_emb(self.table, at[None]))

    def _block(self, i: int, layer, arrays) -> Block:
        attn, mlp = layer.self_attn, layer.mlp
        a = [torch.from_numpy(arrays[f"layers.{i}.attn.{name}.a"]) for name in "qv"]
        rank = len(a[0])
        return Block(
            layer.input_layernorm.weight.data,
            torch.cat([attn.q_proj.weight.data, attn.k_proj.weight.data, attn.v_proj.weight.data]),
            attn.o_proj.weight.data,
            layer.post_attention_layernorm.weight.data,
            torch.cat([mlp.gate_proj.weight.data, mlp.up_proj.weight.data]),
            mlp.down_proj.weight.data,
            torch.nn.Parameter(torch.cat(a)),
            torch.nn.Parameter(torch.zeros(self.heads * self.head, rank)),
            torch.nn.Parameter(torch.zeros(self.kv_heads * self.head, rank)),
        )

    def forward(self, ids: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """Logits (rows, length, vocabulary); ``seen`` (rows, length) bool is false where there is padding."""
        rows, length = ids.shape
        keys, width = self.kv_heads * self.head, self.table.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        mask = None if seen is None else seen[:, None, None, :] & torch.ones(length, length, dtype=torch.bool).tril()
        x = F.embedding(ids, self.table)
        for block in self.blocks:
            h = F.rms_norm(x, (width,), block.norm, self.eps)
            q, k, v = F.linear(h, block.qkv).split((self.heads * self.head, keys, keys), -1)
            low_q, low_v = F.linear(F.dropout(h, self.dropout, self.training), block.a).chunk(2, -1)
            q = q + self.scaling * F.linear(low_q, block.b_q)
            v = v + self.scaling * F.linear(low_v, block.b_v)
            q, k, v = (t.view(rows, length, -1, self.head).transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(
                turned(q, cos, sin),
                turned(k, cos, sin),
                v,
                mask,
                is_causal=mask is None,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            x = x + F.linear(y.transpose(1, 2).reshape(rows, length, -1), block.out)
            gate, up = F.linear(F.rms_norm(x, (width,), block.norm_inner, self.eps), block.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, block.down)
        return F.linear(F.rms_norm(x, (width,), self.norm, self.eps), self.logit)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions, halves in pairs."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
