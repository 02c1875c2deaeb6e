"""GELU and the other activation functions."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.ops._activations import ACTIVATIONS, gelu, gelu_tanh, sigmoid


def test_the_two_forms_of_gelu_differ_by_less_than_five_ten_thousandths():
    """Most near 2.7 on either side, as the page says."""
    x = np.linspace(-8, 8, 200_001)
    apart = np.abs(gelu(x) - gelu_tanh(x))
    assert 4.7e-4 < apart.max() < 4.8e-4
    assert 2.6 < abs(x[apart.argmax()]) < 2.8


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_torch_agrees_in_float64(name):
    """Value and gradient of torch's own function lie within a few units of the function's scale."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    peers = {"gelu_tanh": lambda v: F.gelu(v, approximate="tanh"), "tanh": torch.tanh}
    x = np.linspace(-12, 12, 4001)
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    y = peers.get(name, getattr(F, name, None))(leaf)
    y.sum().backward()
    room = 16 * np.finfo(float).eps * (1 + np.abs(x))
    assert np.all(np.abs(y.detach().numpy() - ACTIVATIONS[name].function(x)) <= room)
    assert np.all(np.abs(leaf.grad.numpy() - ACTIVATIONS[name].vjp(np.ones_like(x), x)) <= room)


def test_the_sigmoid_overflows_nowhere():
    """It reaches 0 and 1 without a warning."""
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(sigmoid(np.array([-700.0, 0.0, 700.0])), [0.0, 0.5, 1.0])
