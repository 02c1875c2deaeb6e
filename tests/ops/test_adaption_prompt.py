"""LLaMA-Adapter's attention against peft's AdaptedAttention around a Llama layer."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.ops import adaption_prompt

SINGLE = {"rtol": 2e-5, "atol": 2e-6}
"""peft computes the softmax in float32, whatever the model's dtype: agreement in float64 ends there."""


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_peft_agrees_to_the_float32_of_its_softmax(groups):
    """Output, and gradients to the prompt and to the layer's one gate, which is the sum over heads here."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from peft.tuners.adaption_prompt.layer import AdaptedAttention
    from transformers.models.llama import modeling_llama

    heads, size, width = 4, 4, 16
    config = transformers.LlamaConfig(
        hidden_size=width, num_attention_heads=heads, num_key_value_heads=groups, attn_implementation="eager"
    )
    torch.manual_seed(0)
    inner = modeling_llama.LlamaAttention(config, layer_idx=0).double()
    adapted = AdaptedAttention("llama", 3, inner).double()
    adapted.adaption_gate.data[:] = 0.7
    x = torch.randn(2, 5, width, dtype=torch.float64)
    rotation = modeling_llama.LlamaRotaryEmbedding(config)(x, torch.arange(5)[None])
    keywords = {"hidden_states": x, "position_embeddings": rotation, "attention_mask": None}
    y = adapted(**keywords)[0]
    dy = torch.randn_like(y)
    y.backward(dy)

    with torch.no_grad():
        q = inner.q_proj(x).view(2, 5, heads, size).transpose(1, 2)
        q, _ = modeling_llama.apply_rotary_pos_emb(q, q, *rotation)
        base = inner(**keywords)[0]
        d_heads = (dy @ inner.o_proj.weight).view(2, 5, heads, size).transpose(1, 2)
    weight_k, weight_v = (p.weight.detach().numpy().reshape(groups, size, width) for p in (inner.k_proj, inner.v_proj))
    prompt, gate = adapted.adaption_prompt[0].detach().numpy(), np.full(heads, 0.7)
    arrays = (np.zeros((2, heads, 5, size)), q.numpy(), prompt, weight_k, weight_v, gate)
    added = np.swapaxes(adaption_prompt.attention(*arrays), 1, 2).reshape(2, 5, width)
    expected = base.numpy() + added @ inner.o_proj.weight.detach().numpy().T
    np.testing.assert_allclose(y.detach().numpy(), expected, **SINGLE)
    _, _, dprompt, _, _, dgate = adaption_prompt.attention.backward(d_heads.numpy(), *arrays)
    np.testing.assert_allclose(adapted.adaption_prompt.grad[0].numpy(), dprompt, **SINGLE)
    np.testing.assert_allclose(adapted.adaption_gate.grad.numpy(), [dgate.sum()], **SINGLE)


def test_the_count_is_the_size_of_the_start():
    """Prompt and gates of each adapted layer."""
    start = adaption_prompt.init(np.random.default_rng(0), 10, 16, 4)
    assert adaption_prompt.count(10, 3, 16, 4) == 3 * sum(a.size for a in start.values())
    assert not np.any(start["gate"])
