"""Prefix tuning against peft: its encoder, its layout, and the attention of a Llama that has its prefix in the cache."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.methods import Cartridge, PrefixTuning, PTuningV2
from refpeft.ops import prefix
from refpeft.ops.attention import attention

CLOSE = {"rtol": 1e-12, "atol": 1e-13}


@pytest.mark.parametrize(("tokens", "width", "hidden", "layers"), [(3, 5, 7, 2), (1, 4, 3, 1), (5, 1, 2, 3)])
def test_peft_encodes_alike(tokens, width, hidden, layers):
    """Its PrefixEncoder in float64: the flat prefix, and the gradient to each parameter."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(
        num_virtual_tokens=tokens,
        token_dim=width,
        encoder_hidden_size=hidden,
        num_layers=layers,
        prefix_projection=True,
        num_attention_heads=1,
    )
    encoder = peft.PrefixEncoder(config).double()
    parameters = [p for _, p in encoder.named_parameters()]
    arrays = prefix.init_encoder(np.random.default_rng(0), tokens, width, hidden, 2 * layers * width)
    for parameter, array in zip(parameters, arrays.values(), strict=True):
        parameter.data = torch.from_numpy(array)
    flat = encoder(torch.arange(tokens))
    cotangent = np.random.default_rng(1).normal(size=flat.shape)
    flat.backward(torch.from_numpy(cotangent))
    np.testing.assert_allclose(flat.detach().numpy(), prefix.encode(**arrays), **CLOSE)
    for parameter, gradient in zip(parameters, prefix.encode.backward(cotangent, *arrays.values()), strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), gradient, **CLOSE)


@pytest.fixture
def llama():
    """A tiny Llama with grouped heads and peft's prefix, and what reaches the attention of each layer in one call."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen = []

    def watched(module, query, key, value, mask, **keywords):
        result = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **keywords)
        seen.append([a.detach().numpy() for a in (query, key, value, result[0])])
        return result

    ALL_ATTENTION_FUNCTIONS.register("watched", watched)
    transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.register(
        "watched", transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    )
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=11,
            attn_implementation="watched",
        )
    ).double()
    model = peft.get_peft_model(base, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).double()
    model(input_ids=torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]))
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop("watched")
    return model, seen


def test_a_llama_with_a_prefix_of_peft_attends_alike(llama):
    """The flat prefix, cut here, is what peft put in front of each layer's keys; prefix.attention gives its output."""
    model, seen = llama
    flat = model.prompt_encoder["default"].embedding.weight.detach().numpy().astype(np.float64)
    keys, values = prefix.cut(flat, l=2, g=2, d=4)
    assert len(seen) == 2
    for (q, k, v, y), prefix_k, prefix_v in zip(seen, keys, values, strict=True):
        for whole, own in ((k, prefix_k), (v, prefix_v)):
            np.testing.assert_array_equal(whole[:, :, :3], np.broadcast_to(own, (2, *own.shape)))
        got = prefix.attention(q, k[:, :, 3:], v[:, :, 3:], prefix_k, prefix_v, causal=True)
        np.testing.assert_allclose(np.swapaxes(got, 1, 2), y, **CLOSE)


def test_a_query_without_a_key_gets_zero_and_gives_no_gradient():
    """Not NaN, and no influence on others."""
    random = np.random.default_rng(0)
    q, k, v, dy = (random.normal(size=(2, 3, 4)) for _ in range(4))
    mask = np.array([[True, False, True], [False] * 3, [True] * 3])
    y = attention(q, k, v, mask, scale=0.5)
    dq, dk, _ = attention.backward(dy, q, k, v, mask, scale=0.5)
    assert not np.any(y[:, 1])
    assert not np.any(dq[:, 1])
    assert np.all(np.isfinite(dk))


def test_logits_of_any_size_are_right():
    """A thousand times what exp can take: the largest logit's value alone."""
    q, k, v = np.array([[[1e6]]]), np.array([[[1.0], [-1.0], [0.5]]]), np.array([[[3.0], [5.0], [7.0]]])
    np.testing.assert_array_equal(attention(q, k, v, scale=1.0), [[[3.0]]])
    np.testing.assert_array_equal(attention(-q, k, v, scale=1.0), [[[5.0]]])


def test_the_prefix_of_a_llama_7b_has_the_size_that_peft_counts():
    """2 p L g d; a cartridge trains what is not frozen; through the perceptron it is far more."""
    dims = {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8}
    assert PTuningV2(tokens=20).count(**dims) == 2 * 20 * 32 * 1024
    assert Cartridge(tokens=20, frozen=4).count(**dims) == 2 * 16 * 32 * 1024
    encoder = prefix.init_encoder(np.random.default_rng(0), 2, 8, 3, 2 * 4 * 8)
    counted = PrefixTuning(tokens=2, hidden=3).count(layers=4, width=16, heads=4, kv_heads=2)
    assert counted == sum(a.size for a in encoder.values())
