"""Methods on convolutions against peft's own layers: outputs, gradients and the merged kernel, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from refpeft import Problem, catalogue
from refpeft.golden import answer
from refpeft.ops import loha_core

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
    wrong : tuple of str
        Parameters to which peft gives a wrong gradient, see ``docs/findings``.
    """

    merge: str
    config: str
    options: dict
    shapes: dict
    attributes: dict
    wrong: tuple = ()


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
    "loha_core.conv2d": Case(
        "loha_core.merge",
        "LoHaConfig",
        {"r": 2, "use_effective_conv2d": True, "scaling": 0.75},
        {
            "core1": ("hada_t1", (2, 2, 2, 2), (2, 2, 2, 2)),
            "w1_a": ("hada_w1_a", (2, 4), (2, 4)),
            "w1_b": ("hada_w1_b", (2, 3), (2, 3)),
            "core2": ("hada_t2", (2, 2, 2, 2), (2, 2, 2, 2)),
            "w2_a": ("hada_w2_a", (2, 4), (2, 4)),
            "w2_b": ("hada_w2_b", (2, 3), (2, 3)),
        },
        {"scaling": 0.75},
        wrong=("w1_a", "w2_a"),
    ),
    "hra.conv2d": Case("hra.merge", "HRAConfig", {"r": 3}, {"u": ("hra_u", (12, 3), (12, 3))}, {"variant": "chain"}),
    "hra.conv2d, Gram-Schmidt": Case(
        "hra.merge",
        "HRAConfig",
        {"r": 3, "apply_GS": True},
        {"u": ("hra_u", (12, 3), (12, 3))},
        {"variant": "gram_schmidt"},
    ),
    "boft.conv2d": Case(
        "boft.merge",
        "BOFTConfig",
        {"boft_block_size": 4},
        {"q": ("boft_R", (1, 3, 4, 4), (1, 3, 4, 4)), "scale": ("boft_s", (1, 4), (4,))},
        {"block": 4, "variant": "peft"},
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
    case, random, name = CASES[name], np.random.default_rng(0), name.partition(",")[0]
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
        right = np.all(golden[result].distance(got.numpy()) <= golden[result].budget)
        assert right == (result[1:] not in case.wrong), result
    layer = layers.around_convolution(torch.from_numpy(weight), None, 1, {}, case.config, **case.options)
    kernel = layers.merged(layer, torch.from_numpy(weight), **{n: torch.from_numpy(t) for n, t in theirs.items()})
    assert kernel.shape == weight.shape
    merge = catalogue()[case.merge]
    ours = {"weight": weight} | own
    if not case.merge.endswith("conv2d_merge"):
        ours = {n: a.reshape(len(a), -1) if a.ndim == 4 and n in FILTERS else a for n, a in ours.items()}
    merged = answer(Problem.of(merge, ours, {n: problem.attributes[n] for n in merge.attributes}, {}))["merged"]
    assert np.all(merged.distance(kernel.numpy().reshape(merged.value.shape)) <= merged.budget)


def test_loha_with_cores_begins_at_the_base_layer():
    """With as many parameters as are counted."""
    start = loha_core.init(np.random.default_rng(0), 4, 3, 2, 5, rank=2)
    weight = np.random.default_rng(1).normal(size=(4, 30))
    np.testing.assert_array_equal(loha_core.merge(weight, **start, scaling=1.0), weight)
    assert sum(a.size for a in start.values()) == loha_core.count(4, 3, 2, 5, rank=2)
