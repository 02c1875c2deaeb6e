"""Orthogonal subspace fine-tuning against peft's layer and its hooks."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.golden import answer
from refpeft.methods import OSF
from refpeft.ops import osf
from refpeft.problem import Problem

ROOM = 2.0**-18
"""Of the largest element: peft's decomposition, and what of its projection rests on that, is float32."""


def close(got, golden) -> None:
    """Within the budget, or normwise as far as peft's float32 decomposition goes."""
    admitted = golden.budget + ROOM * np.max(np.abs(golden.value), initial=0.0)
    assert np.all(golden.distance(got) <= admitted)


@pytest.mark.parametrize("shape", [(6, 6), (8, 4), (4, 8), (7, 5)])
def test_pefts_layer_agrees(shape):
    """Its forward, its projected gradients and its merged weight, wide, tall and square."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    o, i = shape
    base = torch.nn.Linear(i, o).double()
    weight, bias = (t.detach().numpy().copy() for t in (base.weight, base.bias))
    config = peft.OSFConfig(target_modules=["0"], effective_rank=3)
    layer = peft.get_peft_model(torch.nn.Sequential(base), config).double().base_model.model[0]
    trained = layer.osf_svd_params["default"]
    start = {n: getattr(layer, f"_osf_{n}_init")["default"].numpy().copy() for n in ("U_low", "S_low", "V_low")}
    high = np.linalg.svd(weight)[0][:, :3], np.linalg.svd(weight)[2][:3]
    for tensor in trained.values():
        tensor.data += 0.1 * torch.randn_like(tensor)
    random = np.random.default_rng(1)
    x, dy = random.normal(size=(3, i)), random.normal(size=(3, o))
    given = torch.from_numpy(x).requires_grad_()
    y = layer(given)
    y.backward(torch.from_numpy(dy))
    arrays = {n: trained[p].detach().numpy().copy() for n, p in {"u": "U_low", "s": "S_low", "v": "V_low"}.items()}
    frozen = weight - (start["U_low"] * start["S_low"]) @ start["V_low"]
    inputs = {"x": x, "weight": frozen, "bias": bias, "high_u": high[0], "high_v": high[1]} | arrays
    golden = answer(Problem.of("osf.linear", inputs, {}, {"dy": dy}))
    close(y.detach().numpy(), golden["y"])
    close(given.grad.numpy(), golden["dx"])
    for name, theirs in {"du": "U_low", "ds": "S_low", "dv": "V_low"}.items():
        close(trained[theirs].grad.numpy(), golden[name])
    layer.merge()
    merged = answer(Problem.of("osf.merge", {"weight": frozen} | arrays, {}))["merged"]
    close(layer.base_layer.weight.detach().numpy(), merged)


@pytest.mark.parametrize("preserved", [0.0, 0.3, 0.5])
def test_a_step_leaves_what_the_frozen_directions_hold(preserved):
    """Hᵀ (W' - W) and (W' - W) G are zero: the update reads nothing from frozen directions, and writes nothing to them."""
    random = np.random.default_rng(2)
    weight = random.normal(size=(6, 8))
    start = osf.init(weight, preserved=preserved)
    x, dy = random.normal(size=(5, 8)), random.normal(size=(5, 6))
    problem = Problem.of("osf.linear", {"x": x} | start, {}, {"dy": dy})
    golden = answer(problem)
    stepped = {n: start[n] - 0.1 * golden["d" + n].value for n in ("u", "s", "v")}
    change = osf.merge(start["weight"], **stepped) - weight
    assert np.max(np.abs(start["high_u"].T @ change), initial=0.0) <= 2.0**-45
    assert np.max(np.abs(change @ start["high_v"].T), initial=0.0) <= 2.0**-45
    assert np.linalg.norm(change) > 1e-3


def test_as_many_triplets_are_frozen_as_in_peft():
    """A share of the smaller side, rounded down; half of it by default."""
    pytest.importorskip("peft")
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    for share in (0.5, 0.3, 0.99):
        config = peft.OSFConfig(target_modules=["0"], effective_rank=share)
        layer = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(7, 9)), config).base_model.model[0]
        assert layer.effective_rank["default"] == osf.frozen(9, 7, preserved=share)
    assert OSF().count(9, 7) == (7 - 3) * (9 + 7 + 1)
