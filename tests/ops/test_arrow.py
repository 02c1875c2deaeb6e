"""Arrow against peft's router, prototypes and general knowledge included."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft.ops import arrow

SHAPES = {"x": (2, 3, 6), "weight": (5, 6), "bias": (5,), "a": (4, 2, 6), "b": (4, 5, 2), "dy": (2, 3, 5)}


@pytest.fixture
def arrays():
    """A layer with four adapters."""
    random = np.random.default_rng(3)
    return {name: random.normal(size=shape) for name, shape in SHAPES.items()}


def test_a_prototype_is_the_first_right_singular_vector(arrays):
    """Of B A, up to its sign; so is that of an iteration that goes on for long."""
    for a, b in zip(arrays["a"], arrays["b"]):
        expected = np.linalg.svd(b @ a)[2][0]
        found = arrow.prototype(a, b)
        assert abs(abs(found @ expected) - 1) < 1e-14
        assert found[np.argmax(np.abs(found))] > 0
        assert abs(abs(arrow.iterated(a, b, np.ones(6), steps=2000) @ expected) - 1) < 1e-7


def test_fifteen_steps_are_off_where_two_singular_values_are_close():
    """By as much as the quotient to the power of twice the steps leaves."""
    a, b = np.eye(2, 6), np.diag([1.0, 0.99, 0.0])[:, :2]
    assert abs(arrow.prototype(a, b)[0]) == 1
    assert abs(arrow.iterated(a, b, np.array([1.0, 1, 0, 0, 0, 0]))[1]) > 0.5


@pytest.mark.parametrize("general", [0, 2])
def test_a_layer_of_peft_routes_as_the_operation_does(arrays, general):
    """Its own forward in float64, prototypes and subtraction of general knowledge made by itself, and all its gradients."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from peft.tuners.lora.config import ArrowConfig

    model = torch.nn.Sequential(torch.nn.Linear(6, 5))
    options = {"target_modules": ["0"], "r": 2, "lora_alpha": 3}
    names = [f"task_{k}" for k in range(4)] + [f"gks_{k}" for k in range(general)]
    model = peft.get_peft_model(model, peft.LoraConfig(**options), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, peft.LoraConfig(**options))
    config = ArrowConfig(top_k=2, router_temperature=0.5, use_gks=general > 0, rng_seed=7)
    config.task_adapter_names, config.gks_adapter_names = names[:4], names[4:]
    model.add_adapter("arrow_router", peft.LoraConfig(arrow_config=config, **options))
    model.set_adapter("arrow_router")
    layer = model.double().base_model.model[0]
    base = {"weight": arrays["weight"], "bias": arrays["bias"]}
    layer.base_layer.load_state_dict({n: torch.from_numpy(a) for n, a in base.items()})
    extra = np.random.default_rng(4).normal(size=(general, 7, 2))
    a = np.concatenate([arrays["a"], 0.1 + extra[:, :6].transpose(0, 2, 1)])
    b = np.concatenate([arrays["b"], extra[:, 2:]])
    for name, one_a, one_b in zip(names, a, b):
        layer.lora_A[name].weight.data = torch.from_numpy(one_a.copy())
        layer.lora_B[name].weight.data = torch.from_numpy(one_b.copy())
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    y = layer(x)
    y.backward(torch.from_numpy(arrays["dy"]))

    if general:
        a, b = (arrow.without_general(each[:4], each[4:]) for each in (a, b))
    start = torch.randn(6, generator=torch.Generator().manual_seed(7)).numpy()
    theirs = layer.lora_arrow["arrow_router"].prototypes.numpy()
    assert np.allclose(theirs, [arrow.iterated(*pair, start) for pair in zip(a, b)], atol=1e-5)
    inputs = base | {"x": arrays["x"], "a": a, "b": b, "prototypes": theirs, "dy": arrays["dy"]}
    got = {"y": y.detach().numpy(), "dx": x.grad.numpy()}
    refpeft.assert_conforms("arrow.linear", got, scaling=1.5, chosen=2, temperature=0.5, **inputs)
