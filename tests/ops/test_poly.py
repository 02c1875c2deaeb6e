"""Poly against peft's layer, in evaluation and in training with its noise."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft.methods import Poly
from refpeft.ops import poly

TASK = np.array([1, 0, 1])


def around(heads: int):
    """peft's layer in float64, and our arrays of it."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 4).double()
    config = peft.PolyConfig(target_modules=["0"], r=3, n_tasks=2, n_skills=5, n_splits=heads, init_weights=False)
    layer = peft.get_peft_model(torch.nn.Sequential(base), config).double().base_model.model[0].eval()
    logits = layer.poly_router["default"].module_logits
    logits.data = torch.randn_like(logits)
    trained = {"a": layer.poly_lora_A["default"], "b": layer.poly_lora_B["default"], "logits": logits}
    arrays = {n: t.detach().numpy().copy() for n, t in trained.items()}
    arrays |= {"logits": arrays["logits"].reshape(2, heads, 5), "weight": base.weight.detach().numpy()}
    return torch, layer, trained, arrays | {"bias": base.bias.detach().numpy()}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_pefts_layer_agrees_in_float64(heads, training):
    """Its forward and its gradients; in training with the logistic noise that its draw amounts to."""
    torch, layer, trained, arrays = around(heads)
    random = np.random.default_rng(1)
    x, dy = random.normal(size=(3, 2, 6)), random.normal(size=(3, 2, 4))
    given = torch.from_numpy(x).requires_grad_()
    noise = {}
    layer.train(training)
    if training:
        torch.manual_seed(7)
        u = torch.rand((3, heads, 5), dtype=torch.float64)
        noise = {"noise": (u.log() - (-u).log1p()).numpy()}
        torch.manual_seed(7)
    y = layer(given, task_ids=torch.from_numpy(TASK))
    y.backward(torch.from_numpy(dy))
    gradients = {"d" + n: t.grad.numpy().reshape(arrays[n].shape) for n, t in trained.items()}
    got = {"y": y.detach().numpy(), "dx": given.grad.numpy()} | gradients
    inputs = arrays | noise | {"x": x, "task": TASK}
    refpeft.assert_conforms("poly.linear", got, **inputs, dy=dy, **Poly(rank=3, heads=heads).attributes())


def test_one_task_of_equal_logits_is_the_mean_of_its_skills():
    """Up to epsilon: that is how training begins, nearly."""
    random = np.random.default_rng(0)
    method = Poly(rank=2, skills=3)
    start = method.init(random, np.zeros((4, 6))) | {
        "b": random.normal(size=(1, 3, 2, 4)),
        "logits": np.zeros((1, 1, 3)),
    }
    x, task = random.normal(size=(1, 5, 6)), np.zeros(1, np.int64)
    y = poly.linear(x, np.zeros((4, 6)), task=task, **start, **method.attributes())
    mean = x @ start["a"][0].mean(axis=0) @ start["b"][0].mean(axis=0) / 2
    assert np.max(np.abs(y - mean)) <= 1e-11
