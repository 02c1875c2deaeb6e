"""LoRA with an adapter for each sequence, against peft's mixed batches."""

import numpy as np
import pytest

from refpeft.golden import answer
from refpeft.operation import find
from refpeft.problem import Problem

ADAPTERS = [0, 2, 1, 2, 0]


@pytest.fixture
def problem():
    """Five sequences, three adapters, one of them the base model."""
    random = np.random.default_rng(0)
    shapes = {"x": (5, 3, 6), "weight": (4, 6), "a": (3, 2, 6), "b": (3, 4, 2), "bias": (4,)}
    arrays = {name: random.normal(size=shape) for name, shape in shapes.items()}
    arrays["b"][1] = 0
    arrays |= {"adapter": np.array(ADAPTERS), "scaling": np.array([0.5, 2.0, 4.0])}
    return Problem.of("lora.batched", arrays, {}, {"dy": random.normal(size=(5, 3, 4))})


def test_a_mixed_batch_is_pefts(problem):
    """Forward and gradients of x and of each adapter lie within the float64 budget of peft's own layer."""
    torch, tuner = pytest.importorskip("torch"), pytest.importorskip("peft.tuners.lora")
    i = {n: torch.from_numpy(a) for n, a in problem.inputs.items()}
    base = torch.nn.Linear(6, 4, dtype=torch.float64)
    base.weight.data, base.bias.data = i["weight"], i["bias"]
    layer = tuner.Linear(base, "0", config=tuner.LoraConfig(), r=2, lora_alpha=1)
    layer.update_layer("2", r=2, lora_alpha=8, config=tuner.LoraConfig())
    for name in ("0", "2"):
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = i["a"][int(name)], i["b"][int(name)]
    layer.to(torch.float64).requires_grad_()
    x = i["x"].clone().requires_grad_()
    y = layer(x, adapter_names=["__base__" if j == 1 else str(j) for j in ADAPTERS])
    y.backward(torch.from_numpy(problem.cotangents["dy"]))
    got = {"y": y.detach().numpy(), "dx": x.grad.numpy()}
    golden = answer(problem)
    for name, value in got.items():
        assert np.all(golden[name].distance(value) <= golden[name].budget), name
    for j in (0, 2):
        for name, factor in (("da", layer.lora_A), ("db", layer.lora_B)):
            gradient, g = factor[str(j)].weight.grad.numpy(), golden[name]
            assert np.all(np.abs(gradient - g.value[j]) <= g.budget[j]), (name, j)


def test_one_adapter_for_all_is_lora(problem):
    """Under one adapter the batch is lora.linear's, values and gradients."""
    batched, one = find("lora.batched"), find("lora.linear")
    i, dy = problem.inputs, problem.cotangents["dy"]
    for j, scaling in enumerate(i["scaling"]):
        everywhere = np.full(5, j)
        operands = (i["x"], everywhere, i["weight"], i["a"], i["b"], i["scaling"], i["bias"])
        alone = (i["x"], i["weight"], i["a"][j], i["b"][j], i["bias"], None, None)
        np.testing.assert_array_equal(batched.forward(*operands), one.forward(*alone, scaling=scaling, keep=1.0))
        ours, theirs = batched.backward(dy, *operands), one.backward(dy, *alone, scaling=scaling, keep=1.0)
        for got, wanted in zip((ours[0], ours[2][j], ours[3][j]), (theirs[0], theirs[2], theirs[3])):
            assert np.linalg.norm(got - wanted) <= 2.0**-45 * np.linalg.norm(wanted)
