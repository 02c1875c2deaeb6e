"""Methods on convolutions against peft's own layers: outputs, gradients and the merged kernel, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from refpeft import Problem, catalogue
from refpeft.golden import answer

torch = pytest.importorskip("torch")
layers = pytest.importorskip("refpeft_hf.layers")
methods = pytest.importorskip("refpeft_hf.declared").implementations("refpeft_hf.methods")

IMAGES, KERNEL = (2, 3, 5, 5), (4, 3, 2, 2)
GEOMETRY = {"stride": (2, 2), "padding": (1, 1)}
FILTERS = ("weight", "a", "b")


@dataclass
class Case:
    """How one of peft's configurations is an operation here.

    Attributes
    ----------
    merge : str
        The operation that merges.
    config : str
        Name of peft's configuration; ``options`` are its arguments.
    shapes : dict of str to (peft's name, its shape, ours)
        The parameters by our names.
    attributes : dict
        Of the operation.
    """

    merge: str
    config: str
    options: dict
    shapes: dict
    attributes: dict


CASES = {
    "dora.conv2d": Case(
        "dora.merge",
        "LoraConfig",
        {"r": 2, "use_dora": True, "scaling": 0.75},
        {
            "a": ("lora_A", (2, 3, 2, 2), (2, 3, 2, 2)),
            "b": ("lora_B", (4, 2, 1, 1), (4, 2, 1, 1)),
            "magnitude": ("lora_magnitude_vector", (1, 4, 1, 1), (4,)),
        },
        {"scaling": 0.75},
    ),
    "ia3.conv2d": Case(
        "ia3.conv2d_merge",
        "IA3Config",
        {"feedforward_modules": ("adapted",)},
        {"scale": ("ia3_l", (1, 3, 1, 1), (3,))},
        {"side": "input"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_layer_and_its_merged_kernel_are_pefts(name):
    """Within the float64 budgets; the merge of matrices is that of kernels, filter by filter."""
    case, random = CASES[name], np.random.default_rng(0)
    theirs = {p: random.normal(size=shape) for p, shape, _ in case.shapes.values()}
    own = {n: theirs[p].reshape(shape) for n, (p, _, shape) in case.shapes.items()}
    x, weight = random.normal(size=IMAGES), random.normal(size=KERNEL)
    problem = Problem.of(name, {"x": x, "weight": weight} | own, case.attributes | GEOMETRY, {})
    dy = random.normal(size=problem.result_specs["y"][0])
    tensors = [None if a is None else torch.from_numpy(a) for a in problem.positional]
    (y,), residuals = methods[name].forward(*tensors, residuals=True, **problem.attributes)
    wanted = ("x", *own)
    gradients = methods[name].vjp(residuals, [torch.from_numpy(dy)], wanted)
    golden = answer(problem.with_cotangents({"dy": dy}))
    for result, got in {"y": y, **dict(zip(("d" + n for n in wanted), gradients))}.items():
        assert np.all(golden[result].distance(got.numpy()) <= golden[result].budget), result
    layer = layers.around_convolution(torch.from_numpy(weight), None, 1, {}, case.config, **case.options)
    kernel = layers.merged(layer, torch.from_numpy(weight), **{n: torch.from_numpy(t) for n, t in theirs.items()})
    assert kernel.shape == weight.shape
    merge = catalogue()[case.merge]
    ours = {"weight": weight} | own
    if not case.merge.endswith("conv2d_merge"):
        ours = {n: a.reshape(len(a), -1) if a.ndim == 4 and n in FILTERS else a for n, a in ours.items()}
    merged = answer(Problem.of(merge, ours, {n: problem.attributes[n] for n in merge.attributes}, {}))["merged"]
    assert np.all(merged.distance(kernel.numpy().reshape(merged.value.shape)) <= merged.budget)
