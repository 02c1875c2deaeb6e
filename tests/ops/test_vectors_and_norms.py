"""VeRA, PVeRA, HiRA and DeLoRA against peft's own layers, and what unmerging HiRA loses."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft import assert_conforms
from refpeft.errors import DomainError
from refpeft.methods import DeLoRA, PVeRA
from refpeft.ops import delora, hira

SHAPES = [(7, 5, 3), (5, 7, 2), (6, 6, 1), (13, 3, 4), (1, 11, 2), (11, 1, 1)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def arrays(o, i, seed=0, **shapes):
    """x, weight, bias and a cotangent, and arrays of other shapes by name."""
    random = np.random.default_rng(seed)
    shapes = {"x": (4, i), "weight": (o, i), "bias": (o,), "dy": (4, o)} | shapes
    return {n: random.normal(size=s) for n, s in shapes.items()}


def adapted(values, config):
    """peft's layer around a float64 linear layer with these weights."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    o, i = values["weight"].shape
    base = torch.nn.Sequential(torch.nn.Linear(i, o, dtype=torch.float64))
    base[0].weight.data, base[0].bias.data = (torch.from_numpy(values[n].copy()) for n in ("weight", "bias"))
    return peft.get_peft_model(base, config).base_model.model[0]


def run(layer, values, parameters):
    """Output, gradients and merged weight by refpeft's names, the parameters set first."""
    torch = pytest.importorskip("torch")
    for name, parameter in parameters.items():
        parameter.data = torch.from_numpy(values[name].reshape(parameter.shape).copy())
    x = torch.from_numpy(values["x"].copy()).requires_grad_()
    y = layer(x)
    y.backward(torch.from_numpy(values["dy"]))
    found = {"y": y.detach(), "dx": x.grad} | {"d" + n: p.grad for n, p in parameters.items() if p.grad is not None}
    layer.eval()
    layer.merge()
    shapes = {"d" + n: values[n].shape for n in parameters}
    results = {n: t.numpy().reshape(shapes.get(n, tuple(t.shape))) for n, t in found.items()}
    return results, layer.base_layer.weight.detach().numpy()


def without(values, *names):
    return {n: a for n, a in values.items() if n not in names}


@each_shape
def test_peft_vera_agrees_within_the_float64_budget(shape):
    """Forward, gradients to x, lambda_d and lambda_b, and the merged weight."""
    peft, (o, i, r) = pytest.importorskip("peft"), shape
    values = arrays(o, i, a=(r, i), b=(o, r), lambda_d=(r,), lambda_b=(o,))
    layer = adapted(values, peft.VeraConfig(target_modules=["0"], r=r))
    trained = {"lambda_d": layer.vera_lambda_d["default"], "lambda_b": layer.vera_lambda_b["default"]}
    frozen = {"a": layer.vera_A["default"], "b": layer.vera_B["default"]}
    results, merged = run(layer, values, trained | frozen)
    assert results.keys() == {"y", "dx", "dlambda_d", "dlambda_b"}
    assert_conforms("vera.linear", results, **values)
    assert_conforms("vera.merge", merged, **without(values, "x", "bias", "dy"))


@each_shape
def test_peft_pvera_agrees_within_the_float64_budget(shape, monkeypatch):
    """In training with known noise, and its mean when merged."""
    torch, peft, (o, i, r) = pytest.importorskip("torch"), pytest.importorskip("peft"), shape
    values = arrays(o, i, a=(2 * r, i), b=(o, r), lambda_d=(2 * r,), lambda_b=(o,), noise=(4, r))
    layer = adapted(values, peft.PveraConfig(target_modules=["0"], r=r))
    monkeypatch.setattr(torch, "randn_like", lambda t: torch.from_numpy(values["noise"].copy()))
    trained = {"lambda_d": layer.pvera_lambda_d["default"], "lambda_b": layer.pvera_lambda_b["default"]}
    frozen = {"a": layer.pvera_A["default"], "b": layer.pvera_B["default"]}
    layer.train()
    results, merged = run(layer, values, trained | frozen)
    assert_conforms("pvera.linear", results, **values)
    ours = PVeRA(rank=r).merge(values["weight"], without(values, "x", "weight", "bias", "dy", "noise"))
    assert np.linalg.norm(merged - ours) <= 2.0**-48 * np.linalg.norm(ours)


@each_shape
def test_peft_hira_agrees_within_the_float64_budget(shape):
    """Forward, gradients to x, A and B, and the merged weight."""
    peft, (o, i, r) = pytest.importorskip("peft"), shape
    values = arrays(o, i, a=(r, i), b=(o, r))
    layer = adapted(values, peft.HiraConfig(target_modules=["0"], r=r))
    results, merged = run(layer, values, {"a": layer.hira_A["default"], "b": layer.hira_B["default"]})
    assert results.keys() == {"y", "dx", "da", "db"}
    assert_conforms("hira.linear", results, **values)
    assert_conforms("hira.merge", merged, **without(values, "x", "bias", "dy"))


@each_shape
def test_peft_delora_agrees_within_the_float64_budget(shape):
    """Its norms of the weight's columns, forward, gradients to x, A, B and lambda, and the merged weight."""
    peft, (o, i, r) = pytest.importorskip("peft"), shape
    values = arrays(o, i, a=(r, i), b=(o, r), boundary=())
    layer = adapted(values, peft.DeloraConfig(target_modules=["0"], r=r, delora_lambda=15))
    theirs = layer.delora_w_norm["default"].numpy()
    ours = delora.init(np.random.default_rng(0), values["weight"], rank=r)["norms"]
    np.testing.assert_array_almost_equal_nulp(theirs, ours, 4)
    parameters = {
        "a": layer.delora_A["default"],
        "b": layer.delora_B["default"],
        "boundary": layer.delora_lambda["default"],
    }
    results, merged = run(layer, values, parameters)
    assert_conforms("delora.linear", results, **values, norms=theirs)
    assert_conforms("delora.merge", merged, **without(values, "x", "bias", "dy"), norms=theirs)


def test_a_delora_row_below_the_floor_counts_as_the_floor():
    """A zero column of B contributes nothing and nothing is NaN; A longer than the floor has no effect by its length."""
    values = arrays(4, 3, a=(2, 3), b=(4, 2))
    values["b"][:, 0] = 0
    inputs = [values["weight"], values["a"], values["b"], np.array(2.0)]
    merged = delora.merge(*inputs)
    alone = delora.merge(values["weight"], values["a"][1:], values["b"][:, 1:], np.array(1.0))
    np.testing.assert_allclose(merged, alone, rtol=2.0**-48)
    gradients = delora.merge.backward(np.ones((4, 3)), *inputs)
    assert all(np.all(np.isfinite(g)) for g in gradients if g is not None)


def test_the_delora_gradient_turns_a_and_b_and_does_not_stretch_them():
    """Above the floor it is orthogonal to each row of A and each column of B."""
    values = arrays(6, 5, a=(3, 5), b=(6, 3))
    _, da, db, *_ = delora.merge.backward(
        values["dy"].T[:, :4] @ values["x"], values["weight"], values["a"], values["b"], np.array(2.0)
    )
    for gradient, factor in ((da, values["a"]), (db.T, values["b"].T)):
        along = np.abs(np.sum(gradient * factor, axis=1))
        assert np.all(along <= 2.0**-45 * np.sum(np.abs(gradient * factor), axis=1))


def test_hira_unmerges_by_division_and_refuses_what_is_lost():
    """To a few roundings of float32; where 1 + B A is zero the weight is gone."""
    values = arrays(9, 6, a=(2, 6), b=(9, 2))
    weight, a, b = (values[n].astype(np.float32) for n in ("weight", "a", "b"))
    merged = (weight.astype(np.float64) * (1 + b.astype(np.float64) @ a)).astype(np.float32)
    assert np.all(np.abs(hira.unmerge(merged, a, b) - weight) <= 2 * np.spacing(np.abs(weight)))
    with pytest.raises(DomainError, match=r"zero at \[0, 0\]"):
        hira.unmerge(np.ones((1, 1)), np.ones((1, 1)), -np.ones((1, 1)))


def test_the_boundary_is_one_parameter():
    """It is counted beside A and B."""
    assert DeLoRA(rank=2).count(5, 3) == 2 * (5 + 3) + 1
