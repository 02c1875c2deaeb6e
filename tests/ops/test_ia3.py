"""(IA)^3 against peft's own layer, and what its unmerge gives back and loses."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.errors import DomainError, ShapeError
from refpeft.ops import ia3

SIDES = ("output", "input")
SHAPES = [(7, 5), (5, 7), (6, 6), (1, 3), (3, 1), (13, 11)]


def arrays(shape, side, seed=0, dtype=np.float64):
    random = np.random.default_rng(seed)
    o, i = shape
    size = o if side == "output" else i
    return [random.normal(size=s).astype(dtype) for s in ((4, i), shape, (size,), (o,), (4, o))]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_peft_agrees_in_float64(shape, side):
    """Its forward, its gradients to x and to ia3_l, and its merged weight and bias."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    o, i = shape
    x, weight, scale, bias, dy = arrays(shape, side)
    base = torch.nn.Sequential(torch.nn.Linear(i, o, dtype=torch.float64))
    base[0].weight.data, base[0].bias.data = torch.from_numpy(weight.copy()), torch.from_numpy(bias.copy())
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=["0"] if side == "input" else [])
    model = peft.get_peft_model(base, config)
    layer = model.base_model.model[0]
    layer.ia3_l["default"].data = torch.from_numpy(scale.reshape(layer.ia3_l["default"].shape).copy())
    given = torch.from_numpy(x).requires_grad_()
    y = model(given)
    y.backward(torch.from_numpy(dy))
    dx, _, dscale, _ = ia3.linear.backward(dy, x, weight, scale, bias, side=side)
    close = {"rtol": 1e-13, "atol": 1e-13}
    np.testing.assert_allclose(y.detach().numpy(), ia3.linear(x, weight, scale, bias, side=side), **close)
    np.testing.assert_allclose(given.grad.numpy(), dx, **close)
    np.testing.assert_allclose(layer.ia3_l["default"].grad.numpy().reshape(-1), dscale, **close)
    layer.merge()
    np.testing.assert_array_equal(layer.base_layer.weight.detach().numpy(), ia3.merge(weight, scale, side=side))
    wanted = ia3.merge(bias[:, None], scale)[:, 0] if side == "output" else bias
    np.testing.assert_array_equal(layer.base_layer.bias.detach().numpy(), wanted)
    with pytest.warns(UserWarning, match="inaccurate"):
        layer.unmerge()
    back = ia3.unmerge(ia3.merge(weight, scale, side=side), scale, side=side, variant="peft")
    np.testing.assert_array_equal(layer.base_layer.weight.detach().numpy(), back)


@pytest.mark.parametrize("side", SIDES)
def test_unmerging_gives_the_weight_back_to_two_units(side):
    """In float32: one rounding when merging and one when unmerging; bit for bit where the scale is a power of two."""
    _, weight, scale, _, _ = arrays((40, 30), side, dtype=np.float32)
    back = ia3.unmerge(ia3.merge(weight, scale, side=side), scale, side=side)
    assert back.dtype == np.float32
    assert np.all(np.abs(back - weight) <= 2 * np.spacing(np.abs(weight)))
    powers = np.exp2(np.round(scale)).astype(np.float32)
    np.testing.assert_array_equal(ia3.unmerge(ia3.merge(weight, powers, side=side), powers, side=side), weight)


def test_what_a_zero_scale_multiplied_is_lost():
    """Unmerging refuses; in peft's reading it gives a zero row."""
    weight, scale = np.ones((2, 3)), np.array([0.0, 2.0])
    merged = ia3.merge(weight, scale)
    with pytest.raises(DomainError, match="lost"):
        ia3.unmerge(merged, scale)
    np.testing.assert_array_equal(ia3.unmerge(merged, scale, variant="peft")[0], 0.0)


def test_the_scale_fits_the_side_it_is_on():
    """A vector of the other side's length is refused by name."""
    x, weight, scale, _, _ = arrays((7, 5), "output")
    with pytest.raises(ShapeError, match="scale has shape"):
        ia3.linear(x, weight, scale, side="input")
