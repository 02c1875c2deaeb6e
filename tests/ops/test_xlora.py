"""X-LoRA against peft's layer and its classifier."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import refpeft


@pytest.fixture
def peft_xlora():
    """peft's module."""
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    from peft.tuners import xlora

    return xlora


def config(**options):
    """peft's configuration, with its own defaults elsewhere."""
    import peft

    return peft.XLoraConfig(hidden_size=6, adapters={"0": "", "1": "", "2": ""}, **options)


@pytest.mark.parametrize("weight_of_all", [1.0, 0.5])
def test_pefts_layer_agrees_in_float64(peft_xlora, weight_of_all):
    """Its forward over three adapters, and its gradients to x, the factors and the gates."""
    import peft
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7)).double()
    lora = peft.LoraConfig(target_modules=["0"], r=2, lora_alpha=3, init_lora_weights=False)
    model = peft.get_peft_model(model, lora, adapter_name="0")
    for name in ("1", "2"):
        model.add_adapter(name, lora)
    model.base_model.set_adapter(["0", "1", "2"])
    target = model.double().base_model.model[0]
    owner = SimpleNamespace(disabled=False)
    layer = peft_xlora.layer.XLoraLinearLayer(
        owner, target, target.forward, 1, config(global_scaling_weight=weight_of_all)
    )
    random = np.random.default_rng(1)
    x, dy, gates = (random.normal(size=s) for s in ((2, 3, 5), (2, 3, 7), (2, 3, 4, 3)))
    given, scalings = torch.from_numpy(x).requires_grad_(), torch.from_numpy(gates).requires_grad_()
    y = layer.forward(given, scalings=scalings)
    y.backward(torch.from_numpy(dy))
    factors = {n: [m.weight for m in d.values()] for n, d in {"a": target.lora_A, "b": target.lora_B}.items()}
    arrays = {n: np.stack([t.detach().numpy() for t in ts]) for n, ts in factors.items()}
    base = target.get_base_layer()
    arrays |= {"weight": base.weight.detach().numpy(), "bias": base.bias.detach().numpy()}
    got = {"y": y.detach(), "dx": given.grad, "dgates": scalings.grad[:, :, 1]}
    got |= {"d" + n: np.stack([t.grad.numpy() for t in ts]) for n, ts in factors.items()}
    inputs = arrays | {"x": x, "gates": gates[:, :, 1], "scaling": 1.5 * weight_of_all}
    refpeft.assert_conforms("xlora.linear", {n: np.asarray(a) for n, a in got.items()}, **inputs, dy=dy)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_pefts_classifier_agrees_in_float64(peft_xlora, temperature):
    """With no layer below its head: its gates, and the gradients to the head and to the hidden states."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1).double()
    how = config(softmax_temperature=temperature)
    classifier = peft_xlora.classifier.XLoraClassifier(model, how, 3, 2, torch.device("cpu")).double()
    head = classifier.layers[-1]
    random = np.random.default_rng(1)
    hidden, dgates = random.normal(size=(2, 4, 6)), random.normal(size=(2, 4, 3))
    given = torch.from_numpy(hidden).requires_grad_()
    states = SimpleNamespace(hidden_states=[given])
    gates = classifier(states, input_ids=torch.zeros((2, 4), dtype=torch.long))[:, :, 0]
    gates.backward(torch.from_numpy(dgates))
    got = {"gates": gates.detach(), "dhidden": given.grad, "dhead": head.weight.grad, "dhead_bias": head.bias.grad}
    inputs = {"hidden": hidden, "head": head.weight.detach().numpy(), "head_bias": head.bias.detach().numpy()}
    refpeft.assert_conforms("xlora.gates", got, **inputs, dgates=dgates, temperature=temperature)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_pefts_choice_agrees_in_float64(peft_xlora, chosen, softmax):
    """Its largest gates, with the second softmax and without, and the gradient through them."""
    import torch

    how = config(top_k_lora=chosen, enable_softmax_topk=softmax, enable_softmax=not softmax)
    layer = peft_xlora.layer.XLoraLayer(None, None, None, 0, how)
    random = np.random.default_rng(2)
    gates, dkept = random.random((2, 3, 4)), random.normal(size=(2, 3, 4))
    given = torch.from_numpy(gates[:, :, None]).requires_grad_()
    kept = layer.get_maybe_topk_scalings(given)
    kept.backward(torch.from_numpy(dkept))
    got = {"kept": kept.detach(), "dgates": given.grad[:, :, 0]}
    refpeft.assert_conforms("xlora.top", got, gates=gates, dkept=dkept, chosen=chosen, softmax=softmax)


def test_several_active_adapters_are_gates_of_one(peft_xlora):
    """peft's own layer with three adapters set active at once, of unlike scales, which belong to their B here."""
    import peft
    import torch

    torch.manual_seed(0)
    options = {"target_modules": ["0"], "r": 2, "init_lora_weights": False}
    model = torch.nn.Sequential(torch.nn.Linear(5, 7)).double()
    model = peft.get_peft_model(model, peft.LoraConfig(lora_alpha=1, **options), adapter_name="0")
    for name, alpha in (("1", 2), ("2", 4)):
        model.add_adapter(name, peft.LoraConfig(lora_alpha=alpha, **options))
    model.base_model.set_adapter(["0", "1", "2"])
    layer = model.double().base_model.model[0]
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    y, dy = layer(x), torch.randn(2, 3, 7, dtype=torch.float64)
    y.backward(dy)
    a, b = (np.stack([m.weight.detach().numpy() for m in d.values()]) for d in (layer.lora_A, layer.lora_B))
    inputs = {"x": x.detach(), "a": a, "b": b * np.array([0.5, 1, 2])[:, None, None], "gates": np.ones((2, 3, 3))}
    inputs |= {n: t.detach().numpy() for n, t in layer.get_base_layer().named_parameters()}
    refpeft.assert_conforms("xlora.linear", {"y": y.detach(), "dx": x.grad}, **inputs, scaling=1.0, dy=dy)
