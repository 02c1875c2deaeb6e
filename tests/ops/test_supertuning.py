"""Super-tuning and Supra against peft's layer, in float64."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft.methods import Supertuning, Supra
from refpeft.ops import shira, supra


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("largest", [True, False])
def test_pefts_layer_agrees_in_float64(rank, largest):
    """Its places, forward, gradients and merged weight, with LoRA beside them and without."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Linear(5, 7).double()
    hybrid = {"r": rank, "lora_alpha": 3} if rank else {}
    config = peft.SupertuningConfig(target_modules=["0"], sparsity=0.7, select_top=largest, **hybrid)
    layer = peft.get_peft_model(torch.nn.Sequential(base), config).double().base_model.model[0]
    trained = {"values": layer.supertuning_values["default"]}
    if rank:
        trained |= {"a": layer.supertuning_lora_A["default"].weight, "b": layer.supertuning_lora_B["default"].weight}
    for tensor in trained.values():
        tensor.data = torch.randn_like(tensor)
    random = np.random.default_rng(1)
    x, dy = random.normal(size=(3, 5)), random.normal(size=(3, 7))
    given = torch.from_numpy(x).requires_grad_()
    y = layer(given)
    y.backward(torch.from_numpy(dy))
    weight, bias = (t.detach().numpy().copy() for t in (base.weight, base.bias))
    places = layer.supertuning_indices["default"].numpy().astype(np.int64)
    np.testing.assert_array_equal(np.sort(places), supra.start(weight, sparsity=0.7, largest=largest)["places"])
    inputs = {n: t.detach().numpy().copy() for n, t in trained.items()} | {"places": places}
    method = Supra(sparsity=0.7, largest=largest, rank=rank, alpha=3.0) if rank else Supertuning(sparsity=0.7)
    got = {"y": y.detach(), "dx": given.grad} | {"d" + n: t.grad for n, t in trained.items()}
    refpeft.assert_conforms(
        method.operation, got, x=x, weight=weight, bias=bias, dy=dy, **inputs, **method.attributes()
    )
    layer.merge()
    merged = layer.base_layer.weight.detach().numpy()
    refpeft.assert_conforms(
        method.operation.replace("linear", "merge"), merged, weight=weight, **inputs, **method.attributes()
    )


@pytest.mark.parametrize("shape", [(7, 5), (40, 30), (128, 64)])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
def test_as_many_elements_are_trained_as_in_peft(shape, sparsity):
    """A share of all, rounded down."""
    layer = pytest.importorskip("peft.tuners.supertuning.layer").SupertuningLayer
    assert Supertuning(sparsity=sparsity).count(*shape) == layer._num_trainable(None, shape[0] * shape[1], sparsity)


def test_the_largest_and_the_smallest_elements_are_found():
    """Of equals the first come."""
    weight = np.array([[3.0, -5.0, 1.0], [1.0, -3.0, 0.0]])
    assert shira.extreme(weight, 2).tolist() == [0, 1]
    assert shira.extreme(weight, 2, largest=False).tolist() == [2, 5]
