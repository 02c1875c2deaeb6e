"""A bias beside the layer's own, against peft."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft.methods import BEFT, BitFit


def test_peft_agrees_in_float64():
    """Its forward, its gradients to x and to beft_bias, and its merged bias."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    random = np.random.default_rng(0)
    x, weight, bias, shift, dy = (random.normal(size=s) for s in ((3, 5), (7, 5), (7,), (7,), (3, 7)))
    base = torch.nn.Sequential(torch.nn.Linear(5, 7, dtype=torch.float64))
    base[0].weight.data, base[0].bias.data = torch.from_numpy(weight.copy()), torch.from_numpy(bias.copy())
    model = peft.get_peft_model(base, peft.BeftConfig(target_modules=["0"]))
    layer = model.base_model.model[0]
    layer.beft_bias["default"].data = torch.from_numpy(shift[None].copy())
    given = torch.from_numpy(x).requires_grad_()
    y = model(given)
    y.backward(torch.from_numpy(dy))
    got = {"y": y.detach(), "dx": given.grad, "dshift": layer.beft_bias["default"].grad.reshape(-1)}
    refpeft.assert_conforms("beft.linear", got, x=x, weight=weight, bias=bias, shift=shift, dy=dy)
    layer.merge()
    np.testing.assert_array_equal(layer.base_layer.bias.detach().numpy(), bias + shift)


def test_only_biases_are_trained():
    """One number for each output, zero at the start of a layer without a bias."""
    weight = np.ones((7, 5))
    for method in (BitFit(), BEFT()):
        (start,) = method.init(np.random.default_rng(0), weight).values()
        assert start.shape == (method.count(7),)
        assert not start.any()
