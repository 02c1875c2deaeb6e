"""FRoD against peft's layer and its basis."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft.methods import FRoD
from refpeft.ops import frod

SHAPES = [(6, 6), (8, 5), (4, 7)]


def around(shape):
    """peft's layer in float64, its trained values moved off the start, and our arrays of it."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    o, i = shape
    base = torch.nn.Linear(i, o).double()
    config = peft.FrodConfig(target_modules=["0"], sparse_rate=0.2, progressbar=False)
    layer = peft.get_peft_model(torch.nn.Sequential(base), config).double().base_model.model[0]
    for tensor in (layer.frod_lambda_l["default"], layer.frod_lambda_s_values["default"]):
        tensor.data += 0.1 * torch.randn_like(tensor)
    row, column = layer.frod_s_indices["default"].numpy()
    tensors = {
        "u": layer.frod_U,
        "v": layer.frod_V,
        "diagonal": layer.frod_lambda_l,
        "sparse": layer.frod_lambda_s_values,
    }
    arrays = {n: t["default"].detach().numpy().astype(np.float64) for n, t in tensors.items()}
    return torch, layer, arrays | {"places": row * i + column}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("shape", SHAPES)
def test_pefts_layer_agrees_in_float64(shape):
    """Its forward, its gradients to x and to what it trains, and its merged weight."""
    torch, layer, arrays = around(shape)
    o, i = shape
    random = np.random.default_rng(1)
    x, dy = random.normal(size=(2, 3, i)), random.normal(size=(2, 3, o))
    given = torch.from_numpy(x).requires_grad_()
    y = layer(given)
    y.backward(torch.from_numpy(dy))
    trained = {"ddiagonal": layer.frod_lambda_l["default"].grad, "dsparse": layer.frod_lambda_s_values["default"].grad}
    bias = layer.get_base_layer().bias.detach().numpy()
    refpeft.assert_conforms(
        "frod.linear", {"y": y.detach(), "dx": given.grad} | trained, x=x, dy=dy, bias=bias, **arrays
    )
    merged = FRoD().merge(layer.get_base_layer().weight.detach().numpy(), arrays)
    layer.merge()
    assert np.max(np.abs(layer.get_base_layer().weight.detach().numpy() - merged)) <= 2.0**-48 * np.max(np.abs(merged))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_basis_is_pefts(shape):
    """Up to the signs of its columns, as far as float32 goes."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("peft.tuners.frod.model")._projection_from_weights
    random = np.random.default_rng(3)
    weights = [random.normal(size=shape) for _ in range(3)]
    ours, other = frod.basis(weights), theirs([torch.from_numpy(w) for w in weights], 1e-3).numpy()
    signs = np.sign(np.sum(ours * other, axis=0))
    assert np.max(np.abs(ours - signs * other)) <= 2.0**-30 * np.max(np.abs(ours))


@pytest.mark.parametrize("shape", SHAPES)
def test_training_begins_at_the_base_model(shape):
    """U diag(l) Vᵀ is the weight, columns of U have norm one, and as many numbers are trained as `count` says."""
    weight = np.random.default_rng(0).normal(size=shape)
    method = FRoD(rate=0.2)
    start = method.init(np.random.default_rng(1), weight)
    assert start["diagonal"].size + start["sparse"].size == method.count(shape[1])
    assert np.max(np.abs(frod.merge(**start) - weight)) <= 2.0**-40 * np.max(np.abs(weight))
    norms = np.linalg.norm(start["u"], axis=0)
    assert np.max(np.minimum(np.abs(norms - 1), norms)) <= 2.0**-50
    row, column = np.divmod(start["places"], shape[1])
    assert np.all(row != column)


@pytest.mark.parametrize("width", [1, 2, 7, 40])
@pytest.mark.parametrize("rate", [0.0, 0.001, 0.5, 1.0])
def test_as_many_elements_are_trained_as_in_peft(width, rate):
    """A share of all, at least one, none on the diagonal."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    config = peft.FrodConfig(target_modules=["0"], sparse_rate=rate, progressbar=False)
    layer = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(width, 3)), config).base_model.model[0]
    assert layer.frod_lambda_s_values["default"].numel() + width == frod.count(width, rate=rate)
