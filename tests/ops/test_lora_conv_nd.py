"""LoRA on sequences and volumes, against peft's own layers."""

import numpy as np
import pytest

from refpeft.golden import answer
from refpeft.problem import Problem

CASES = {
    "lora.conv1d": ((2, 4, 9), (6, 2, 3), (2, 4, 3), (6, 1, 1), {"stride": 2, "padding": 1, "groups": 2}),
    "lora.conv3d": (
        (2, 4, 4, 5, 3),
        (6, 2, 2, 3, 1),
        (2, 4, 2, 3, 1),
        (6, 1, 1, 1, 1),
        {"stride": (1, 2, 1), "padding": (1, 0, 2), "groups": 2},
    ),
}


@pytest.mark.filterwarnings("ignore:LoRA adapter added")
@pytest.mark.parametrize("name", CASES)
def test_the_layer_is_pefts(name):
    """Forward and gradients lie within the float64 budget of peft's own layer, grouped and padded, without dilation."""
    torch, lora = pytest.importorskip("torch"), pytest.importorskip("peft.tuners.lora")
    layers = pytest.importorskip("peft.tuners.lora.layer")
    random = np.random.default_rng(0)
    *shapes, attributes = CASES[name]
    arrays = {n: random.normal(size=shape) for n, shape in zip(("x", "weight", "a", "b"), shapes)}
    arrays["bias"] = random.normal(size=6)
    rank = int(name[-2])
    base = getattr(torch.nn, f"Conv{rank}d")(4, 6, shapes[1][2:], **attributes, dtype=torch.float64)
    base.weight.data, base.bias.data = (torch.from_numpy(arrays[n]) for n in ("weight", "bias"))
    layer = getattr(layers, f"Conv{rank}d")(base, "default", config=lora.LoraConfig(), r=2, lora_alpha=3).double()
    layer.lora_A["default"].weight.data = torch.from_numpy(arrays["a"])
    layer.lora_B["default"].weight.data = torch.from_numpy(arrays["b"])
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    y = layer(x)
    dy = random.normal(size=tuple(y.shape))
    y.backward(torch.from_numpy(dy))
    got = {"y": y.detach(), "dx": x.grad}
    got |= {"da": layer.lora_A["default"].weight.grad, "db": layer.lora_B["default"].weight.grad}
    for result, golden in answer(Problem.of(name, arrays, {"scaling": 1.5} | attributes, {"dy": dy})).items():
        if result in got:
            assert np.all(golden.distance(got[result].numpy()) <= golden.budget), result
