"""The shadow beside the hidden states against peft's layer."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft.methods import Shadow
from refpeft.ops import shadow

PARTS = {"down": 0, "up": 2}


@pytest.fixture
def layer():
    """peft's layer in float64 around a block that does nothing, every tensor drawn."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from peft.tuners.shadow.layers import ShadowLayer

    torch.manual_seed(0)
    config = peft.ShadowConfig(r=3, shadow_alpha=0.3, update_hidden_size=4, init_weights=False)
    return ShadowLayer(torch.nn.Identity(), "default", config, hidden_size=5).double().eval()


def arrays_of(layer):
    """Our parameters of its two networks, as peft's tensors."""
    networks = {"candidate": layer.shadow_update_transform["default"], "gate": layer.shadow_update_gate["default"]}
    return {
        f"{name}_{part}{suffix}": getattr(network[at], "bias" if suffix else "weight")
        for name, network in networks.items()
        for part, at in PARTS.items()
        for suffix in ("", "_bias")
    }


def compared(operation, y, inputs, tensors, dy, **attributes):
    """The output and all gradients after ``y.backward``."""
    import torch

    y.backward(torch.from_numpy(dy))
    got = {"y": y.detach()} | {"d" + n: t.grad for n, t in (inputs | tensors).items()}
    arrays = {n: t.detach().numpy() for n, t in (inputs | tensors).items()}
    refpeft.assert_conforms(operation, got, **arrays, dy=dy, **attributes)


def states():
    """Hidden states and their shadow as leaves, and a cotangent."""
    import torch

    random = np.random.default_rng(1)
    x, s, dy = (random.normal(size=(2, 3, 5)) for _ in range(3))
    return {"x": torch.tensor(x, requires_grad=True), "shadow": torch.tensor(s, requires_grad=True)}, dy


def test_pefts_injection_agrees_in_float64(layer):
    """Its output, and its gradients to the states and to both matrices."""
    inputs, dy = states()
    y = layer.shadow_inject(inputs["x"], inputs["shadow"], "default")
    tensors = {"down": layer.shadow_down["default"].weight, "up": layer.shadow_up["default"].weight}
    compared("shadow.inject", y, inputs, tensors, dy, scaling=0.3)


def test_pefts_update_agrees_in_float64(layer):
    """Its output, and its gradients to the states and to both networks."""
    inputs, dy = states()
    y = layer.shadow_update(inputs["x"], inputs["shadow"], "default")
    compared("shadow.update", y, inputs, arrays_of(layer), dy)


def test_as_many_numbers_are_trained_at_a_block_as_in_peft(layer):
    """And the start has as many."""
    method = Shadow(rank=3, width=4)
    start = method.init(np.random.default_rng(0), np.zeros((5, 5)))
    trained = sum(p.numel() for n, p in layer.named_parameters() if "shadow" in n)
    assert method.count(5, 1) == sum(a.size for a in start.values()) == trained
    assert method.count(5, 12) == 12 * trained


def test_training_begins_at_the_base_model():
    """Up is zero."""
    random = np.random.default_rng(0)
    start = Shadow().init(random, np.zeros((6, 6)))
    x, s = random.normal(size=(3, 6)), random.normal(size=(3, 6))
    np.testing.assert_array_equal(shadow.inject(x, s, start["down"], start["up"], scaling=0.1), x)
