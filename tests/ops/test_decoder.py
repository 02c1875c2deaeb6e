"""A decoder's parts against transformers' own, where that can be seen on tensors of a real width."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft.ops import rope


def test_rotary_tables_and_turns_are_llamas():
    """transformers' rotary embedding and `apply_rotary_pos_emb`, in float64 but for the float32 frequencies of its tables."""
    torch, llama = pytest.importorskip("torch"), pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_theta=10000.0, max_position_embeddings=64)
    random = np.random.default_rng(0)
    q = random.normal(size=(2, 4, 9, 16))
    cos, sin = llama.LlamaRotaryEmbedding(config)(torch.from_numpy(q).float(), torch.arange(9)[None])
    angles = rope.angles(np.arange(9), rope.inverse_frequencies(16))
    np.testing.assert_allclose(np.cos(angles), cos[0, :, :8].numpy(), atol=2**-20)
    np.testing.assert_allclose(np.sin(angles), sin[0, :, :8].numpy(), atol=2**-20)
    turned, _ = llama.apply_rotary_pos_emb(torch.from_numpy(q), torch.from_numpy(q), cos.double(), sin.double())
    tables = {"cos": cos[0, :, :8].double(), "sin": sin[0, :, :8].double()}
    refpeft.assert_conforms("nn.rope", turned, x=q, **tables, layout="halves")


def test_llamas_norm_conforms_in_float32():
    """`LlamaRMSNorm` of a vector of 2048, gradient included."""
    torch, llama = pytest.importorskip("torch"), pytest.importorskip("transformers.models.llama.modeling_llama")
    random = np.random.default_rng(0)
    norm = llama.LlamaRMSNorm(2048, eps=1e-5)
    norm.weight.data = torch.from_numpy(random.normal(size=2048)).float()
    x = torch.from_numpy(random.normal(size=(3, 2048))).float().requires_grad_()
    dy = torch.from_numpy(random.normal(size=(3, 2048))).float()
    y = norm(x)
    y.backward(dy)
    got = {"y": y.detach(), "dx": x.grad, "dweight": norm.weight.grad}
    refpeft.assert_conforms("nn.rms_norm", got, x=x.detach(), weight=norm.weight.detach(), dy=dy, eps=1e-5)


def test_a_loss_over_a_real_vocabulary_conforms():
    """torch's cross-entropy with tokens left out, over 49152 words; the budget is not vacuous."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(6, 49152)) * 4).float().requires_grad_()
    target, mask = random.integers(0, 49152, 6), np.array([True, True, False, True, False, True])
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(np.where(mask, target, -100)))
    loss.backward()
    inputs = {"logits": logits.detach(), "target": target, "mask": mask, "dloss": np.float32(1)}
    refpeft.assert_conforms("nn.cross_entropy", {"loss": loss.detach(), "dlogits": logits.grad}, **inputs)
    assert not refpeft.oracle("nn.cross_entropy", **inputs)["loss"].vacuous
