"""DoRA against peft's own layer, what a zero row is, and what unmerging needs."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft import assert_conforms
from refpeft.errors import CapabilityError
from refpeft.methods import DoRA
from refpeft.ops import dora

SHAPES = [(7, 5, 3), (5, 7, 2), (6, 6, 1), (13, 3, 4), (1, 11, 2), (11, 1, 1)]


def arrays(o, i, rank, seed=0):
    """Inputs of dora.linear without bias and mask, and a cotangent."""
    random = np.random.default_rng(seed)
    shapes = {"x": (4, i), "weight": (o, i), "a": (rank, i), "b": (o, rank), "magnitude": (o,), "dy": (4, o)}
    return {n: random.normal(size=s) for n, s in shapes.items()}


def peft_layer(given, scaling, bias=None):
    """peft's DoRA layer with these weights, in float64."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    (o, i), rank = given["weight"].shape, len(given["a"])
    base = torch.nn.Sequential(torch.nn.Linear(i, o, bias=bias is not None, dtype=torch.float64))
    base[0].weight.data = torch.from_numpy(given["weight"].copy())
    if bias is not None:
        base[0].bias.data = torch.from_numpy(bias.copy())
    config = peft.LoraConfig(target_modules=["0"], r=rank, lora_alpha=scaling * rank, use_dora=True)
    layer = peft.get_peft_model(base, config).base_model.model[0]
    started = layer.lora_magnitude_vector["default"].weight.detach().numpy().copy()
    np.testing.assert_array_almost_equal_nulp(
        started, dora.init(np.random.default_rng(0), given["weight"], rank=rank)["magnitude"], 4
    )
    for part, name in ((layer.lora_A, "a"), (layer.lora_B, "b"), (layer.lora_magnitude_vector, "magnitude")):
        part["default"].weight.data = torch.from_numpy(given[name].copy())
    return layer


def results(layer, given):
    """Output and gradients of a peft layer by refpeft's names."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(given["x"].copy()).requires_grad_()
    y = layer(x)
    y.backward(torch.from_numpy(given["dy"]))
    parts = {"da": layer.lora_A, "db": layer.lora_B, "dmagnitude": layer.lora_magnitude_vector}
    found = {"y": y.detach(), "dx": x.grad} | {n: p["default"].weight.grad for n, p in parts.items()}
    return {n: t.numpy() for n, t in found.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_peft_agrees_within_the_float64_budget(shape):
    """Its start, forward, gradients to x, A, B and m, and its merged weight."""
    given = arrays(*shape)
    layer = peft_layer(given, scaling=0.75)
    assert_conforms("dora.linear", results(layer, given), **given, scaling=0.75)
    layer.merge()
    merge = {n: given[n] for n in ("weight", "a", "b", "magnitude")}
    assert_conforms("dora.merge", layer.base_layer.weight.detach().numpy(), **merge, scaling=0.75)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_peft_agrees_in_training_with_dropout(shape):
    """With its dropout replaced by a known mask: dropout acts on the change of the layer's output alone."""
    torch = pytest.importorskip("torch")
    given = arrays(*shape)
    mask = np.random.default_rng(1).random(given["x"].shape) < 0.75

    class Known(torch.nn.Module):
        def forward(self, x):
            return x * torch.from_numpy(mask) / 0.75

    bias = np.random.default_rng(2).normal(size=shape[0])
    layer = peft_layer(given, 2.0, bias)
    layer.lora_dropout["default"] = Known()
    layer.train()
    assert_conforms("dora.linear", results(layer, given), **given, bias=bias, mask=mask, keep=0.75, scaling=2.0)


def test_peft_subtracts_a_bias_again():
    """Without dropout its y goes through the stored base output with bias, whose rounding g - 1 then magnifies."""
    given, bias = arrays(7, 5, 2), np.full(7, 2.0**20)
    given["magnitude"] *= 2.0**20
    y = results(peft_layer(given, 1.0, bias), given)["y"]
    del given["dy"]
    with pytest.raises(AssertionError, match="y"):
        assert_conforms("dora.linear", y, **given, bias=bias, scaling=1.0)
    g = np.abs(given["magnitude"]) / dora.norms(given["weight"], given["a"], given["b"], scaling=1.0)
    assert np.all(np.abs(y - dora.linear(**given, bias=bias, scaling=1.0)) <= 2 * (1 + g) * np.spacing(2.0**20))


def test_a_zero_row_has_no_direction():
    """Its output is the bias, whatever the magnitude, and nothing is NaN; the other rows are as ever."""
    given = arrays(4, 3, 2)
    given["weight"][1], given["b"][1] = 0, 0
    dy, inputs = given.pop("dy"), given
    y = dora.linear(**inputs, scaling=1.0, norm="full")
    assert np.all(y[:, 1] == 0)
    gradients = dict(zip(inputs, dora.linear.backward(dy, *inputs.values(), scaling=1.0, norm="full")))
    assert all(np.all(np.isfinite(g)) for g in gradients.values())
    assert gradients["magnitude"][1] == 0
    assert not np.any(gradients["b"][1])


def test_unmerging_needs_the_norms_and_has_them_kept():
    """The merged weight has lost them: the method says so; with them the weight comes back."""
    given = arrays(9, 6, 2)
    parts = [given[n] for n in ("a", "b", "magnitude")]
    merged = dora.merge(given["weight"], *parts, scaling=0.5)
    twice = dora.merge(2 * given["weight"], parts[0], 2 * parts[1], parts[2], scaling=0.5)
    np.testing.assert_array_equal(merged, twice)
    kept = dora.norms(given["weight"], parts[0], parts[1], scaling=0.5)
    back = dora.unmerge(merged, *parts, kept, scaling=0.5)
    assert np.linalg.norm(back - given["weight"]) <= 2.0**-45 * np.linalg.norm(given["weight"])
    with pytest.raises(CapabilityError, match=r"DoRA cannot be unmerged: .*norms"):
        DoRA().unmerge(merged, {})
