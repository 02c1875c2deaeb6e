"""Lily against peft's layer, in float64."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft.ops import lily


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5)])
def test_pefts_layer_agrees_in_float64(shape):
    """Its forward, and its gradients to x, A, B and the router."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Linear(5, 7).double()
    config = peft.LilyConfig(target_modules=["0"], r=3, num_B=4, scaling=0.7, init_weights=False)
    layer = peft.get_peft_model(torch.nn.Sequential(base), config).double().base_model.model[0]
    tensors = {
        n: getattr(layer, p)["default"].weight
        for n, p in {"a": "lily_A", "b": "lily_B", "router": "lily_router"}.items()
    }
    random = np.random.default_rng(1)
    x, dy = random.normal(size=shape), random.normal(size=(*shape[:-1], 7))
    given = torch.from_numpy(x).requires_grad_()
    y = layer(given)
    y.backward(torch.from_numpy(dy))
    shapes = {"b": (4, 3, 7)}
    inputs = {n: t.detach().numpy().reshape(shapes.get(n, t.shape)) for n, t in tensors.items()}
    inputs |= {"x": x, "weight": base.weight.detach().numpy(), "bias": base.bias.detach().numpy()}
    gradients = {"d" + n: t.grad.numpy().reshape(shapes.get(n, t.shape)) for n, t in tensors.items()}
    got = {"y": y.detach().numpy(), "dx": given.grad.numpy()} | gradients
    refpeft.assert_conforms("lily.linear", got, **inputs, dy=dy, scaling=0.7)


def test_a_token_depends_on_the_others():
    """The shares of the B are a mean over the batch."""
    random = np.random.default_rng(0)
    shapes = {"weight": (3, 4), "a": (2, 4), "b": (2, 2, 3), "router": (2, 2)}
    arrays = {n: random.normal(size=s) for n, s in shapes.items()}
    x = random.normal(size=(2, 4))
    both = lily.linear(x, **arrays, scaling=1.0)
    alone = lily.linear(x[:1], **arrays, scaling=1.0)
    assert np.max(np.abs(both[:1] - alone)) > 1e-3
