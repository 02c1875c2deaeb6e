"""BD-LoRA and VeLoRA against peft's own layers."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft import assert_conforms
from refpeft.errors import AttributeValueError
from refpeft.methods import BDLoRA, VeLoRA
from refpeft.ops import velora


def arrays(o, i, a, b, seed=0):
    """Inputs of a layer without bias, and a cotangent."""
    random = np.random.default_rng(seed)
    shapes = {"x": (4, i), "weight": (o, i), "a": a, "b": b, "dy": (4, o)}
    return {n: random.normal(size=s) for n, s in shapes.items()}


def run(values, config):
    """peft's layer with these weights in training: its output and gradients by refpeft's names, and the layer."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    o, i = values["weight"].shape
    base = torch.nn.Sequential(torch.nn.Linear(i, o, bias=False, dtype=torch.float64))
    base[0].weight.data = torch.from_numpy(values["weight"].copy())
    layer = peft.get_peft_model(base, config).base_model.model[0]
    parts = {"a": layer.lora_A["default"].weight, "b": layer.lora_B["default"].weight}
    for name, parameter in parts.items():
        parameter.data = torch.from_numpy(values[name].copy())
    x = torch.from_numpy(values["x"].copy()).requires_grad_()
    layer.train()
    y = layer(x)
    y.backward(torch.from_numpy(values["dy"]))
    results = {"y": y.detach().numpy(), "dx": x.grad.numpy()} | {"d" + n: p.grad.numpy() for n, p in parts.items()}
    return results, layer


@pytest.mark.parametrize(("o", "i", "rank", "blocks"), [(6, 8, 4, 2), (9, 3, 3, 3), (6, 6, 6, 1)])
@pytest.mark.parametrize("side", ["a", "b"])
def test_peft_bdlora_agrees_within_the_float64_budget(side, o, i, rank, blocks):
    """Forward, gradients to x and both factors, and the merged weight."""
    peft = pytest.importorskip("peft")
    a, b = (rank, i // blocks if side == "a" else i), (o, rank // blocks if side == "b" else rank)
    values = arrays(o, i, a, b)
    split = peft.tuners.lora.config.BdLoraConfig(**{f"target_modules_bd_{side}": ["0"]}, nblocks=blocks)
    config = peft.LoraConfig(target_modules=["0"], r=rank, lora_alpha=3 * rank, use_bdlora=split)
    results, layer = run(values, config)
    attributes = BDLoRA(rank=rank, alpha=3.0 * rank, blocks=blocks, side=side).attributes()
    assert_conforms("bdlora.linear", results, **values, **attributes)
    layer.merge()
    inputs = {n: values[n] for n in ("weight", "a", "b")}
    assert_conforms("bdlora.merge", layer.base_layer.weight.detach().numpy(), **inputs, **attributes)


@pytest.mark.parametrize(("o", "i", "rank", "groups"), [(6, 8, 3, 2), (5, 6, 2, 6), (3, 7, 1, 1)])
def test_peft_velora_agrees_within_the_float64_budget(o, i, rank, groups):
    """Forward, and the gradients to x, B and, from what it kept of x, A; v is the mean of the batch's groups."""
    peft = pytest.importorskip("peft")
    values = arrays(o, i, (rank, i), (o, rank))
    kept = peft.tuners.lora.config.VeloraConfig(num_groups=groups, scale=1.5)
    config = peft.LoraConfig(target_modules=["0"], r=rank, lora_alpha=2 * rank, velora_config=kept)
    results, layer = run(values, config)
    v = layer.lora_velora_embed["default"].numpy().astype(np.float64)
    assert np.linalg.norm(v - velora.projection(values["x"], groups=groups)) <= 2.0**-20
    assert_conforms("velora.linear", results, **values, v=v, groups=groups, scaling=2.0, restore=1.5)


def test_what_does_not_divide_is_refused():
    """In a sentence that says what must divide what."""
    random = np.random.default_rng(0)
    with pytest.raises(AttributeValueError, match="blocks must be a divisor of the 7 inputs, but 2 came"):
        BDLoRA().init(random, np.zeros((4, 7)))
    with pytest.raises(AttributeValueError, match="groups must be a divisor of the 30 inputs, but 16 came"):
        VeLoRA().init(random, np.zeros((4, 30)))


def test_no_projection_of_nothing():
    """Where the mean of the batch's groups is zero, all entries of v are equal."""
    np.testing.assert_allclose(velora.projection(np.zeros((2, 8)), groups=2), np.full(4, 0.5))
