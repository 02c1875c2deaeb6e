"""P-tuning's encoders against peft's in float64."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.errors import ShapeError
from refpeft.ops import ptuning

CLOSE = {"rtol": 1e-11, "atol": 1e-14}


def encoder(kind, tokens, width, hidden):
    """peft's PromptEncoder, and its parameters by their names there."""
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    config = peft.PromptEncoderConfig(
        num_virtual_tokens=tokens,
        token_dim=width,
        encoder_hidden_size=hidden,
        encoder_reparameterization_type=kind,
        num_transformer_submodules=1,
        task_type="CAUSAL_LM",
    )
    model = peft.PromptEncoder(config).double()
    return model, dict(model.named_parameters())


def run(model, tokens, seed=0):
    """Its prompt and a cotangent, after the backward."""
    import torch

    prompt = model(torch.arange(tokens))
    dy = np.random.default_rng(seed).normal(size=prompt.shape)
    prompt.backward(torch.from_numpy(dy))
    return prompt.detach().numpy(), dy


@pytest.mark.parametrize(("tokens", "width", "hidden"), [(4, 5, 3), (1, 2, 7), (7, 3, 3)])
def test_the_perceptron_of_peft_agrees(tokens, width, hidden):
    """Prompt and the gradient to each of seven tensors."""
    model, theirs = encoder("MLP", tokens, width, hidden)
    arrays = [p.detach().numpy() for p in theirs.values()]
    prompt, dy = run(model, tokens)
    np.testing.assert_allclose(prompt, ptuning.mlp(*arrays), **CLOSE)
    for parameter, gradient in zip(theirs.values(), ptuning.mlp.backward(dy, *arrays), strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), gradient, **CLOSE)


@pytest.mark.parametrize(("tokens", "width", "hidden"), [(4, 5, 3), (1, 2, 7), (7, 3, 2), (20, 4, 4)])
def test_the_lstm_of_peft_agrees(tokens, width, hidden):
    """Prompt and the gradient to each tensor; torch's two biases are summed, and each has the gradient of the sum."""
    model, theirs = encoder("LSTM", tokens, width, hidden)

    def pair(name, layer, gradient=False):
        both = (theirs[f"lstm_head.{name}_l{layer}{end}"] for end in ("", "_reverse"))
        return np.stack([(p.grad if gradient else p.detach()).numpy() for p in both])

    arrays = [theirs["embedding.weight"].detach().numpy()]
    for layer in range(2):
        arrays += [pair("weight_ih", layer), pair("weight_hh", layer)]
        arrays += [pair("bias_ih", layer) + pair("bias_hh", layer)]
    top = [theirs[f"mlp_head.{name}"] for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
    arrays += [p.detach().numpy() for p in top]
    prompt, dy = run(model, tokens)
    np.testing.assert_allclose(prompt, ptuning.lstm(*arrays), **CLOSE)
    gradients = ptuning.lstm.backward(dy, *arrays)
    wanted = [theirs["embedding.weight"].grad.numpy()]
    for layer in range(2):
        wanted += [pair(name, layer, gradient=True) for name in ("weight_ih", "weight_hh", "bias_ih")]
        np.testing.assert_allclose(wanted[-1], pair("bias_hh", layer, gradient=True), **CLOSE)
    wanted += [p.grad.numpy() for p in top]
    for gradient, expected in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, expected, **CLOSE)


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_the_count_is_the_size_of_the_start(kind):
    """Of each encoder."""
    arrays = getattr(ptuning, f"init_{kind}")(np.random.default_rng(0), 5, 6, 3)
    assert getattr(ptuning, f"count_{kind}")(5, 6, 3) == sum(a.size for a in arrays.values())
    assert getattr(ptuning, kind)(**arrays).shape == (5, 6)


def test_a_prompt_of_more_than_64_tokens_is_refused():
    """Beyond, a proven budget says nothing."""
    arrays = ptuning.init_lstm(np.random.default_rng(0), 65, 2, 1)
    with pytest.raises(ShapeError, match="p <= 64"):
        ptuning.lstm(**arrays)
