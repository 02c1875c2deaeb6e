"""QLoRA: equal to LoRA on the dequantised weight, with the gradient of that, and nothing for the frozen base."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refpeft import golden, plugins
from refpeft.comparison import assert_conforms, compare
from refpeft.errors import AttributeValueError, DtypeError, ShapeError
from refpeft.numerics.formats import FLOAT64, FORMATS, as_format, store
from refpeft.numerics.interpretations import ComplexStep, Strict
from refpeft.numerics.precision import standard_precision
from refpeft.ops import nf4, qlora
from refpeft.problem import Problem
from refpeft_conformance.strategies import is_exact, problems, regimes_of
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation

few = settings(max_examples=25, deadline=None, database=None, derandomize=True)
OPERATION = "qlora.linear"
DEPTH = 2**10
"""More than the roundings on any way from an input to <dy, J v>: sums over i, r, o and the batch."""


def dequantized(problem):
    """The frozen weight in the problem's dtype, computed as bytes and a table say, in float32 arithmetic."""
    o, i = problem.dims["o"], problem.dims["i"]
    packed, absmax = problem.inputs["packed"], problem.inputs["absmax"]
    codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: o * i]
    scale = np.repeat(absmax, problem.attributes["blocksize"])[: o * i]
    values = nf4.CODEBOOK.astype(np.float32)[codes] * scale
    return store(values.astype(np.float64), as_format(problem.dtype)).reshape(o, i)


def as_lora(problem):
    """The same numbers as a problem of lora.linear."""
    inputs = {n: a for n, a in problem.inputs.items() if n not in ("packed", "absmax")}
    return Problem.of(
        "lora.linear",
        inputs | {"weight": dequantized(problem)},
        {"scaling": problem.attributes["scaling"]},
        problem.cotangents,
    )


def drawn():
    """Problems of every dtype and regime."""
    kinds = st.tuples(st.sampled_from(list(FORMATS)), st.sampled_from(regimes_of(OPERATION)))
    return kinds.flatmap(lambda kind: problems(OPERATION, dtype=kind[0], regime=kind[1]))


@few
@given(problem=drawn())
def test_it_is_lora_on_the_dequantised_weight(problem):
    """The golden values of the output and of all gradients are the same numbers."""
    mine, other = golden.evaluate(problem), golden.evaluate(as_lora(problem))
    assert set(mine) == {"y", *(f"d{n}" for n in problem.inputs if n not in ("packed", "absmax"))}
    for name in mine:
        np.testing.assert_array_equal(mine[name], other[name])


@few
@given(problem=drawn())
def test_the_budget_is_that_of_a_weight_without_error(problem):
    """W is a constant of the definition: where no backend may flush subnormals, it brings no error into the budget."""
    mine, other = golden.answer(problem), golden.answer(as_lora(problem))
    for name in mine:
        np.testing.assert_array_equal(mine[name].budget, other[name].budget)


@few
@given(problem=problems(OPERATION, dtype="float64"), seed=st.integers(0, 2**32 - 1))
def test_the_gradient_is_the_adjoint_of_the_complex_step_derivative(problem, seed):
    """<dy, J v> = <vjp(dy), v> for a random direction v in x, a, b and bias."""
    random, names = np.random.default_rng(seed), [a.name for a in problem.operation.signature.inputs]
    along = {n: random.normal(size=problem.inputs[n].shape) for n in problem.wanted}
    arrays = [ComplexStep.along(problem.inputs[n], along[n]) if n in along else problem.inputs.get(n) for n in names]
    moved = problem.operation.forward(*arrays, **problem.attributes).derivative
    results = golden.evaluate(problem)
    forward, backward = problem.cotangents["dy"] * moved, [results["d" + n] * along[n] for n in along]
    left, right = forward.sum(), sum(g.sum() for g in backward)
    terms = np.abs(forward).sum() + sum(np.abs(g).sum() for g in backward)
    assert abs(left - right) <= FLOAT64.unit * DEPTH * terms


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_weight_that_is_kept_in_float32_does_not_conform(dtype):
    """The definition rounds W to the computation dtype; a fused kernel that does not is another operation."""
    format, random = as_format(dtype), np.random.default_rng(3)
    inputs = {
        "x": store(np.full((1, 64), 256.0), format),
        "packed": random.integers(0, 256, size=4 * 64 // 2, dtype=np.uint8),
        "absmax": random.uniform(1, 2, size=4).astype(np.float32),
        "a": store(np.zeros((1, 64)), format),
        "b": store(np.zeros((4, 1)), format),
    }
    problem = Problem.of(OPERATION, inputs, {"scaling": 1.0})
    exact = nf4.decode(inputs["packed"], inputs["absmax"], 4 * 64, 64).reshape(4, 64)
    got = store(256 * exact.sum(axis=1)[None], format)
    rounded = store(256 * dequantized(problem).astype(np.float64).sum(axis=1)[None], format)
    expected = golden.answer(problem)["y"]
    assert compare(problem, "y", expected, rounded).conforms
    assert not compare(problem, "y", expected, got).conforms


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_the_exact_lane_has_weights(dtype):
    """Its problems are exact, and most of them have a base weight that is not all zero."""
    shares = []

    @settings(few, max_examples=100)
    @given(problem=problems(OPERATION, dtype=dtype, regime="exact"))
    def look(problem):
        assert is_exact(problem, standard_precision(dtype))
        shares.append(np.any(dequantized(problem)))

    look()
    assert np.mean(shares) > 0.5


def test_dtype_follows_the_inputs():
    """It need not be given, and may not contradict them; calling the operation itself needs it."""
    inputs = {
        "x": np.ones((1, 2), np.float16),
        "packed": np.array([0xFF], np.uint8),
        "absmax": np.ones(1, np.float32),
        "a": np.ones((1, 2), np.float16),
        "b": np.ones((1, 1), np.float16),
    }
    assert Problem.of(OPERATION, inputs, {"scaling": 1.0}).attributes["dtype"] == "float16"
    assert_conforms(OPERATION, np.full((1, 1), 4.0, np.float16), scaling=1.0, **inputs)
    with pytest.raises(DtypeError, match="x has dtype float16 but float32"):
        Problem.of(OPERATION, inputs, {"scaling": 1.0, "dtype": "float32"})
    with pytest.raises(AttributeValueError, match="dtype is missing"):
        qlora.linear(**inputs, scaling=1.0)
    with pytest.raises(ShapeError, match="packed"):
        Problem.of(OPERATION, inputs | {"packed": np.zeros(2, np.uint8)}, {"scaling": 1.0})


def test_the_source_stays_inside_the_set_of_primitives():
    """Forward and backward run on arrays that nothing converts, and give the same numbers there."""

    @few
    @given(problem=problems(OPERATION, dtype="float64"))
    def same(problem):
        strict = [None if x is None else Strict(x) for x in problem.positional]
        y = problem.operation.forward(*strict, **problem.attributes)
        gradients = problem.operation.backward(Strict(problem.cotangents["dy"]), *strict, **problem.attributes)
        expected = golden.evaluate(problem)
        np.testing.assert_array_equal(y.to_numpy(), expected["y"])
        for argument, gradient in zip(problem.operation.differentiable, gradients):
            if argument.name in problem.inputs:
                np.testing.assert_array_equal(gradient.to_numpy(), expected["d" + argument.name])

    same()


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("dtype", list(FORMATS))
def test_every_regime_conforms(backend, dtype):
    """Outputs and gradients of the reference and of torch, at the precision that each declares."""
    if backend == "torch":
        pytest.importorskip("torch")
    subject, observed = Subject(plugins.backend(backend)), Observation()
    precision, regimes = subject.precision(dtype), st.sampled_from((*regimes_of(OPERATION), "exact"))

    @few
    @given(problem=regimes.flatmap(lambda r: problems(OPERATION, dtype=dtype, regime=r, precision=precision)))
    def holds(problem):
        subject.hold(problem, observed, gradients=False)
        subject.hold(problem, observed, gradients=True)

    holds()
    assert observed.elements > observed.vacuous


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bitsandbytes_own_product_conforms(dtype):
    """`matmul_4bit` under autograd on the CPU is the base path: y and dx lie within the budget where B = 0."""
    torch = pytest.importorskip("torch")
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is the peer of this test")
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    x = torch.randn(5, 128, dtype=kind, requires_grad=True)
    weight, bias, dy = (torch.randn(shape, dtype=kind) for shape in ((96, 128), (96,), (5, 96)))
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4")
    y = bnb.matmul_4bit(x, packed.t(), quant_state=state, bias=bias)
    y.backward(dy)
    zeros = {"a": torch.zeros(1, 128, dtype=kind), "b": torch.zeros(96, 1, dtype=kind)}
    assert_conforms(
        OPERATION,
        {"y": y, "dx": x.grad},
        x=x,
        packed=packed.reshape(-1),
        absmax=state.absmax,
        bias=bias,
        scaling=1.0,
        dy=dy,
        **zeros,
    )
