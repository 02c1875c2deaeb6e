"""LoRA of a convolution: gradients, padding modes and groups, and when it is one convolution with a merged kernel."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refpeft import golden, plugins
from refpeft.errors import AttributeValueError, ShapeError
from refpeft.numerics.formats import FLOAT64, FORMATS
from refpeft.numerics.interpretations import ComplexStep, Strict
from refpeft.ops import lora_conv, lora_merge
from refpeft.problem import Problem
from refpeft_conformance.strategies import problems, regimes_of
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation

few = settings(max_examples=30, deadline=None, database=None, derandomize=True)
OPERATION = "lora.conv2d"
DEPTH = 2**10
"""More than the roundings on any way from an input to <dy, J v>."""
SHORT = tuple(r for r in regimes_of(OPERATION) if r != "long")


def drawn():
    """Problems of every dtype and regime but the long one."""
    kinds = st.tuples(st.sampled_from(list(FORMATS)), st.sampled_from((*SHORT, "exact")))
    return kinds.flatmap(lambda kind: problems(OPERATION, dtype=kind[0], regime=kind[1]))


def by_loops(x, kernel, stride, padding, dilation, groups, mode):
    """Cross-correlation from the formula, one product at a time, out of an extension that is written out too."""
    n, _, h, w = x.shape
    o, cg, kh, kw = kernel.shape
    oh = (h + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (w + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1

    def inside(i, size):
        if mode == "reflect":
            i = -i if i < 0 else i
            return 2 * (size - 1) - i if i >= size else i
        return i % size if mode == "circular" else min(max(i, 0), size - 1)

    y = np.zeros((n, o, oh, ow))
    for k, q, i, j, d, u, v in itertools.product(*map(range, (n, o, oh, ow, cg, kh, kw))):
        row, column = i * stride[0] + u * dilation[0] - padding[0], j * stride[1] + v * dilation[1] - padding[1]
        if mode != "zeros" or (0 <= row < h and 0 <= column < w):
            seen = x[k, q // (o // groups) * cg + d, inside(row, h), inside(column, w)]
            y[k, q, i, j] += kernel[q, d, u, v] * seen
    return y


@few
@given(problem=problems(OPERATION, dtype="fp64", regime="exact", gradients=False))
def test_it_is_the_formula(problem):
    """On inputs whose sums are exact it equals the loops, in every mode, stride, dilation and grouping."""
    x, weight, a, b, bias, lora_bias, mask = problem.positional
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    stride, padding, dilation, groups, mode = (problem.attributes[n] for n in names)
    s, keep = problem.attributes["scaling"], problem.attributes["keep"]
    z = x if mask is None else np.where(mask, x / keep, 0)
    down = by_loops(z, a, stride, padding, dilation, 1, mode)
    up = by_loops(down, b, (1, 1), (0, 0), (1, 1), groups, "zeros")
    up = up if lora_bias is None else up + lora_bias[:, None, None]
    y = by_loops(x, weight, stride, padding, dilation, groups, mode) + s * up
    y = y if bias is None else y + bias[:, None, None]
    np.testing.assert_array_equal(golden.evaluate(problem)["y"], y)


@few
@given(problem=problems(OPERATION, dtype="fp64"))
def test_gradients_are_the_adjoint_of_the_derivative(problem):
    """<dy, J v> = <J' dy, v> for a random v along all inputs at once, J v by complex step."""
    random, operation = np.random.default_rng(0), problem.operation
    directions = {n: random.normal(size=problem.inputs[n].shape) for n in problem.wanted}
    moved = [
        ComplexStep.along(x, directions[a.name]) if a.name in directions else x
        for a, x in zip(operation.signature.inputs, problem.positional)
    ]
    along = operation.forward(*moved, **problem.attributes).derivative * problem.cotangents["dy"]
    gradients = golden.evaluate(problem)
    back = [gradients["d" + n] * v for n, v in directions.items()]
    terms = np.abs(along).sum() + sum(np.abs(x).sum() for x in back)
    assert abs(along.sum() - sum(x.sum() for x in back)) <= DEPTH * FLOAT64.unit * terms


@settings(few, max_examples=10)
@given(problem=problems(OPERATION, dtype="fp64", regime="exact"))
def test_the_source_runs_on_a_foreign_device(problem):
    """Forward and backward stay inside the set of primitives and give the same numbers."""
    inputs = [None if x is None else Strict(x) for x in problem.positional]
    y = problem.operation.forward(*inputs, **problem.attributes)
    gradients = problem.operation.backward(Strict(problem.cotangents["dy"]), *inputs, **problem.attributes)
    plain = golden.evaluate(problem)
    np.testing.assert_array_equal(y.to_numpy(), plain["y"])
    np.testing.assert_array_equal(gradients[0].to_numpy(), plain["dx"])


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_implementations_stay_within_the_budget(backend):
    """No false alarm over dtypes and regimes; torch's gradients come from autograd."""
    if backend == "torch":
        pytest.importorskip("torch")
    subject = Subject(plugins.backend(backend))

    @few
    @given(problem=drawn())
    def holds(problem):
        for gradients in (False, True):
            subject.hold(problem, Observation(), gradients=gradients)

    holds()


@few
@given(problem=problems(OPERATION, dtype="fp64", regime="exact", gradients=False))
def test_without_groups_it_is_the_convolution_with_the_merged_kernel(problem):
    """With exact sums the same numbers, whatever the stride, padding, mode and dilation; dropout and groups aside."""
    x, weight, a, b, bias, _, _ = problem.positional
    attributes = problem.attributes | {"groups": 1}
    weight = np.tile(weight, (1, attributes["groups"] * x.shape[1] // weight.shape[1], 1, 1))
    b = np.tile(b, (1, a.shape[0] // b.shape[1], 1, 1))
    o, r = b.shape[:2]
    flat = (weight.reshape(o, -1), a.reshape(r, -1), b.reshape(o, r))
    merged = lora_merge.merge(*flat, scaling=attributes["scaling"]).reshape(weight.shape)
    adapted = lora_conv.conv2d(x, weight, a, b, bias, **attributes)
    plain = lora_conv.conv2d(x, merged, a, np.zeros_like(b), bias, **attributes)
    np.testing.assert_array_equal(adapted, plain)


def test_a_grouped_update_sees_channels_that_the_base_does_not():
    """With two groups the first output depends on the second group's channel, through A alone."""
    x, weight = np.zeros((1, 2, 1, 1)), np.ones((2, 1, 1, 1))
    x[0, 1] = 1.0
    y = lora_conv.conv2d(x, weight, np.ones((2, 2, 1, 1)), np.ones((2, 1, 1, 1)), scaling=3.0, groups=2)
    np.testing.assert_array_equal(y[0, :, 0, 0], [3.0, 4.0])


def test_copies_may_be_added_in_storage():
    """What falls on an element and its 48 copies may be added in bfloat16 step by step."""
    format = FORMATS["bfloat16"]
    random = np.random.default_rng(0)
    ones = np.ones((1, 1, 1, 1), format.dtype)
    dy = random.normal(size=(1, 1, 7, 7)).astype(format.dtype)
    x = random.normal(size=(1, 1, 1, 1)).astype(format.dtype)
    problem = Problem.of(
        OPERATION,
        {"x": x, "weight": ones, "a": ones, "b": ones * 0},
        {"scaling": 1.0, "padding": (3, 3), "padding_mode": "replicate"},
        {"dy": dy},
    )
    total = np.zeros((), format.dtype)
    for value in dy.ravel():
        total = (total.astype(np.float32) + value.astype(np.float32)).astype(format.dtype)
    answer = golden.answer(problem)["dx"]
    assert answer.distance(total.reshape(1, 1, 1, 1)) <= answer.budget


ONES = (np.ones((1, 2, 3, 3)), np.ones((2, 2, 2, 2)), np.ones((2, 2, 2, 2)), np.ones((2, 2, 1, 1)))


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"stride": (0, 1)}, r"stride\[0\] >= 1, but stride = \(0, 1\)"),
        ({"dilation": (1, 0)}, r"dilation\[1\] >= 1, but dilation = \(1, 0\)"),
        ({"padding": (-1, 0)}, r"padding\[0\] >= 0, but padding = \(-1, 0\)"),
        ({"groups": 0}, r"groups >= 1, but groups = 0"),
        ({"groups": 2}, r"c = cg\*groups, but c = 2, cg = 2, groups = 2"),
        ({"dilation": (3, 1)}, r"dilation\[0\]\*\(kh-1\)\+1 <= h\+2\*padding\[0\], but dilation = \(3, 1\), h = 3"),
        *(
            (
                {"padding": padding, "padding_mode": mode},
                rf"padding\[{k}\]\*is\(padding_mode,{mode}\) {symbol} {size}, but",
            )
            for mode, symbol, most in (("reflect", "<", 3), ("circular", "<=", 4))
            for k, padding, size in ((0, (most, 0), "h"), (1, (0, most), "w"))
        ),
    ],
)
def test_what_is_undefined_is_refused(attributes, said):
    """The sentence names the constraint and what came."""
    with pytest.raises(ShapeError, match=r"lora\.conv2d: the signature needs " + said):
        lora_conv.conv2d(*ONES, scaling=1.0, **attributes)


def test_outputs_that_groups_do_not_divide_are_refused():
    """Three outputs can't stand in two groups."""
    arrays = (np.ones((1, 2, 3, 3)), np.ones((3, 1, 1, 1)), np.ones((2, 2, 1, 1)), np.ones((3, 1, 1, 1)))
    with pytest.raises(ShapeError, match=r"needs o//groups\*groups = o, but groups = 2, o = 3"):
        lora_conv.conv2d(*arrays, scaling=1.0, groups=2)


@pytest.mark.parametrize(("shape", "side"), [((0, 2), "kh"), ((2, 0), "kw")])
def test_a_kernel_without_elements_is_refused(shape, side):
    """It would see nothing."""
    x, _, _, b = ONES
    empty = np.ones((2, 2, *shape))
    with pytest.raises(ShapeError, match=f"the signature needs {side} >= 1, but {side} = 0"):
        lora_conv.conv2d(x, empty, empty, b, scaling=1.0)


def test_an_unknown_mode_is_refused():
    """The set of padding modes is closed."""
    with pytest.raises(AttributeValueError, match="padding_mode must be one of"):
        lora_conv.conv2d(*ONES, scaling=1.0, padding_mode="same")


@pytest.mark.parametrize("attributes", [{}, {"stride": (2, 1), "padding": (1, 1)}, {"groups": 2, "padding": (1, 0)}])
def test_peft_computes_the_same(attributes):
    """In the same layout of A and B, where peft passes the base layer's settings on: zeros around, no dilation."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    random = np.random.default_rng(0)
    layer = torch.nn.Conv2d(4, 6, 3, **attributes).double()
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["0"])
    groups = attributes.get("groups", 1)
    with pytest.warns(UserWarning) if groups > 1 else nullcontext():
        adapted = peft.get_peft_model(torch.nn.Sequential(layer), config).double()
    lora = adapted.base_model.model[0]
    a, b = random.normal(size=(2, 4, 3, 3)), random.normal(size=(6, 2 // groups, 1, 1))
    lora.lora_A["default"].weight.data, lora.lora_B["default"].weight.data = torch.from_numpy(a), torch.from_numpy(b)
    x = random.normal(size=(2, 4, 7, 5))
    theirs = adapted(torch.from_numpy(x)).detach().numpy()
    weight, bias = (t.detach().numpy() for t in (layer.weight, layer.bias))
    inputs = {"x": x, "weight": weight, "a": a, "b": b, "bias": bias}
    answer = golden.answer(Problem.of(OPERATION, inputs, {"scaling": 4.0} | attributes))["y"]
    assert np.all(answer.distance(theirs) <= answer.budget)
