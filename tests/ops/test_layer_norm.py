"""Layer normalisation: what is exact in it, realistic eps, and peft's LN tuning."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft.methods import LayerNormTuning
from refpeft.numerics import standard_precision
from refpeft.numerics.interpretations import Exact
from refpeft.ops.layer_norm import layer_norm


@pytest.mark.parametrize(
    ("row", "eps", "normal"),
    [
        ([3.0, -1, -1, -1], 1.0, [1.5, -0.5, -0.5, -0.5]),
        ([5.0, 1, 1, 1], 1.0, [1.5, -0.5, -0.5, -0.5]),
        ([2.0, -2, 0, 0], 2.0, [1, -1, 0, 0]),
        ([7.0, 7, 7, 7], 0.25, [0, 0, 0, 0]),
    ],
)
def test_rows_with_a_rational_deviation_are_exact(row, eps, normal):
    """variance + eps is the square of a power of two, so that nothing is rounded in two passes: `Exact` takes them."""
    assert np.array_equal(layer_norm(np.array([row]), eps=eps), [normal])
    precision = standard_precision("float32")
    lifted = Exact.input(np.array([row]), precision)
    assert np.array_equal(layer_norm.forward(lifted, eps=Exact.input(eps, precision)).value, [normal])


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 1e-12])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_torch_conforms_at_the_eps_of_real_models(eps, mean):
    """In float32 and float64, on vectors of a common width: budgets are finite there, and not vacuous."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        x, dy = (mean + random.normal(size=(3, 768))).astype(dtype), random.normal(size=(3, 768)).astype(dtype)
        w, b = (random.normal(size=768).astype(dtype) for _ in range(2))
        leaves = [torch.from_numpy(a).requires_grad_() for a in (x, w, b)]
        y = torch.nn.functional.layer_norm(leaves[0], (768,), leaves[1], leaves[2], eps)
        y.backward(torch.from_numpy(dy))
        got = {"y": y.detach(), "dx": leaves[0].grad, "dweight": leaves[1].grad, "dbias": leaves[2].grad}
        refpeft.assert_conforms("nn.layer_norm", got, x=x, weight=w, bias=b, dy=dy, eps=eps)
        golden = refpeft.oracle("nn.layer_norm", x=x, weight=w, bias=b, dy=dy, eps=eps)
        assert np.mean(golden["y"].vacuous) < 0.05


def test_a_variance_in_one_pass_does_not_conform():
    """Mean of squares minus square of the mean, in float32, at a mean of 100 deviations."""
    x = (100 + np.random.default_rng(0).normal(size=(4, 64))).astype(np.float32)
    mean = x.mean(axis=-1, keepdims=True)
    y = (x - mean) / np.sqrt((x * x).mean(axis=-1, keepdims=True) - mean * mean + np.float32(1e-5))
    with pytest.raises(AssertionError, match="proven budget"):
        refpeft.assert_conforms("nn.layer_norm", y, x=x, eps=1e-5)


def test_peft_ln_tuning_agrees_in_float64():
    """Its forward, and its gradients to the copies of weight and bias that it trains."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    random = np.random.default_rng(1)
    x, dy = random.normal(size=(5, 7)), random.normal(size=(5, 7))
    start = {"weight": random.normal(size=7), "bias": random.normal(size=7)}
    norm = torch.nn.LayerNorm(7, eps=1e-6, dtype=torch.float64)
    norm.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in start.items()})
    with pytest.warns(UserWarning, match="Unsupported layer type"):
        model = peft.get_peft_model(torch.nn.Sequential(norm), peft.LNTuningConfig(target_modules=["0"]))
    y = model(torch.from_numpy(x))
    y.backward(torch.from_numpy(dy))
    gradients = {n.rpartition(".")[2]: p.grad.numpy() for n, p in model.named_parameters() if p.requires_grad}
    got = {"y": y.detach().numpy()} | {"d" + n: g for n, g in gradients.items()}
    assert gradients.keys() == set(LayerNormTuning.trainable)
    refpeft.assert_conforms("nn.layer_norm", got, x=x, **start, dy=dy, eps=1e-6)
