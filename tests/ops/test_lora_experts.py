"""LoRA on the weights of experts: against peft's own update of a parameter, and the factors' places by hand."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.golden import evaluate
from refpeft.ops import lora_experts
from refpeft.problem import Problem


def test_factors_lie_where_the_page_says():
    """Two experts of rank two: rows of a belong to 0, 0, 1, 1, columns of b to 0, 1, 0, 1."""
    a, b = np.diag([1.0, 2, 3, 4]), np.array([[1.0, 10, 100, 1000]])
    merged = evaluate(
        Problem.of("lora.experts_merge", {"weight": np.zeros((2, 1, 4)), "a": a, "b": b}, {"scaling": 1.0})
    )
    assert merged["merged"].tolist() == [[[1, 200, 0, 0]], [[0, 0, 30, 4000]]]


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_the_update_is_pefts(layout):
    """That of its wrapper of a parameter, in either layout, number for number in float64 up to rounding."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")

    class Module(torch.nn.Module):
        is_transposed = layout == "in_out"

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros((3, 5, 4) if self.is_transposed else (3, 4, 5)).double())

    config = peft.LoraConfig(target_parameters=["0.weight"], r=2, lora_alpha=3, init_lora_weights=False)
    layer = peft.get_peft_model(torch.nn.Sequential(Module()), config).base_model.model[0].double()
    a, b = (d["default"].weight.detach().numpy() for d in (layer.lora_A, layer.lora_B))
    weight = layer.get_base_layer().weight.detach().numpy()
    merging = Problem.of("lora.experts_merge", {"weight": weight, "a": a, "b": b}, {"scaling": 1.5, "layout": layout})
    theirs = layer.get_delta_weight("default").detach().numpy()
    assert np.max(np.abs(evaluate(merging)["merged"] - theirs)) < 1e-15
    start = lora_experts.init(np.random.default_rng(0), 3, 4, 5, rank=2)
    assert {n: x.shape for n, x in start.items()} == {"a": a.shape, "b": b.shape}
    assert lora_experts.count(3, 4, 5, rank=2) == a.size + b.size
    assert not np.any(start["b"])
