"""LoRA's update as a matrix: gradients, correctly rounded storage, and what merging costs."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refpeft import golden, plugins
from refpeft.errors import AttributeValueError, ShapeError
from refpeft.numerics.correct import round_fraction
from refpeft.numerics.formats import FLOAT64, FORMATS, as_format, ulp
from refpeft.numerics.interpretations import ComplexStep
from refpeft.ops import lora_merge
from refpeft.problem import Problem
from refpeft_conformance.strategies import problems, regimes_of
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation

few = settings(max_examples=25, deadline=None, database=None, derandomize=True)
OPERATIONS = ("lora.delta", "lora.merge", "lora.unmerge")
every_operation = pytest.mark.parametrize("name", OPERATIONS)
DEPTH = 2**8
"""More than the roundings on any way from an input to <dy, J v>: sums over r, then o and i, of at most 17 each."""


def drawn(name, **options):
    """Problems of every dtype and regime."""
    kinds = st.tuples(st.sampled_from(list(FORMATS)), st.sampled_from((*regimes_of(name), "exact")))
    return kinds.flatmap(lambda kind: problems(name, dtype=kind[0], regime=kind[1], **options))


@every_operation
def test_gradients_are_the_adjoint_of_the_derivative(name):
    """<dy, J v> = <J' dy, v> for a random v, J v by complex step."""

    @few
    @given(problem=problems(name, dtype="fp64"))
    def holds(problem):
        random, operation = np.random.default_rng(0), problem.operation
        directions = [random.normal(size=x.shape) for x in problem.positional]
        moved = [ComplexStep.along(x, v) for x, v in zip(problem.positional, directions)]
        along = operation.forward(*moved, **problem.attributes).derivative * problem.cotangents[operation.cotangents[0]]
        back = [golden.evaluate(problem)["d" + n] * v for n, v in zip(problem.inputs, directions)]
        forward, backward = along.sum(), sum(x.sum() for x in back)
        terms = np.abs(along).sum() + sum(np.abs(x).sum() for x in back)
        assert abs(forward - backward) <= DEPTH * FLOAT64.unit * terms

    holds()


@every_operation
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_implementations_stay_within_the_budget(name, backend):
    """No false alarm over dtypes and regimes; torch's gradients come from autograd."""
    if backend == "torch":
        pytest.importorskip("torch")
    subject = Subject(plugins.backend(backend))

    @settings(few, max_examples=60)
    @given(problem=drawn(name))
    def holds(problem):
        for gradients in (False, True):
            subject.hold(problem, Observation(), gradients=gradients)

    holds()


@pytest.mark.parametrize("name", ["lora.merge", "lora.unmerge"])
def test_storage_holds_the_nearest_number(name):
    """What the reference stores is the exact result, rounded once."""

    @few
    @given(problem=drawn(name, gradients=False))
    def holds(problem):
        base, a, b = (x.astype(float) for x in problem.positional)
        s = Fraction(problem.attributes["scaling"]) * (1 if name == "lora.merge" else -1)
        (got,) = golden.stored(problem).values()
        for o, i in list(np.ndindex(base.shape))[:40]:
            exact = Fraction(base[o, i]) + s * sum(Fraction(x) * Fraction(y) for x, y in zip(b[o], a[:, i]))
            assert got[o, i] == round_fraction(exact, as_format(problem.dtype))

    holds()


@few
@given(problem=drawn("lora.merge", gradients=False))
def test_unmerging_restores_the_weight_to_one_ulp_of_the_merged(problem):
    """W lies half an ulp of M at most from M - s B A, which is the merge's error, and what comes back is as near."""
    merged = golden.stored(problem)["merged"]
    inputs = {"merged": merged, "a": problem.inputs["a"], "b": problem.inputs["b"]}
    back = golden.stored(Problem.of("lora.unmerge", inputs, problem.attributes))["weight"].astype(float)
    assert np.all(np.abs(back - problem.inputs["weight"].astype(float)) <= ulp(merged, as_format(problem.dtype)))


def test_unmerging_is_not_always_exact():
    """In bfloat16, 1 + 256 rounds to 256, and 256 - 256 is 0."""
    bf16 = FORMATS["bfloat16"].dtype
    one, large = np.ones((1, 1), bf16), np.full((1, 1), 256, bf16)
    problem = Problem.of("lora.merge", {"weight": one, "a": one, "b": large}, {"scaling": 1.0})
    merged = golden.stored(problem)["merged"]
    inputs = {"merged": merged, "a": one, "b": large}
    assert golden.stored(Problem.of("lora.unmerge", inputs, {"scaling": 1.0}))["weight"] == 0


@few
@given(problem=problems("lora.linear", dtype="fp32", gradients=False))
def test_the_merged_layer_is_the_adapted_one(problem):
    """x M' + bias differs from lora.linear by both budgets and |x| times half an ulp of M, the merge's own rounding."""
    plain = problem.replace(inputs={n: v for n, v in problem.inputs.items() if n not in ("lora_bias", "mask")})
    x, weight, a, b = plain.positional[:4]
    merge = Problem.of("lora.merge", {"weight": weight, "a": a, "b": b}, {"scaling": problem.attributes["scaling"]})
    merged = golden.stored(merge)["merged"]
    layer = {"x": x, "weight": merged} | ({"bias": plain.inputs["bias"]} if "bias" in plain.inputs else {})
    layer = Problem.of("nn.linear", layer, {})
    adapted, direct = golden.answer(plain)["y"], golden.answer(layer)["y"]
    rounding = np.abs(x.astype(float)) @ ulp(merged, FORMATS["float32"]).T / 2
    apart = np.abs(golden.stored(plain)["y"].astype(float) - golden.stored(layer)["y"])
    assert np.all(apart <= adapted.budget + direct.budget + rounding)


@few
@given(problem=drawn("lora.merge"))
def test_the_base_receives_the_cotangent_itself(problem):
    """dW = dmerged, bit for bit."""
    np.testing.assert_array_equal(golden.stored(problem)["dweight"], problem.cotangents["dmerged"])


@pytest.mark.parametrize("name", ["lora.delta", "lora.merge"])
def test_underflow_inside_the_product_is_scaled(name):
    """Where the products are subnormal their absolute errors grow by s: s (B A) in float32 stays within the budget."""
    random = np.random.default_rng(0)
    b, a = (
        (random.normal(size=(40, 16)) * 2.0**-140).astype(np.float32),
        random.normal(size=(16, 40)).astype(np.float32),
    )
    inputs = {"a": a, "b": b} | ({"weight": np.zeros((40, 40), np.float32)} if name == "lora.merge" else {})
    problem = Problem.of(name, inputs, {"scaling": 1000.0})
    total = np.zeros((40, 40), np.float32)
    for k in range(16):
        total = total + b[:, k, None] * a[k]
    (answer,) = golden.answer(problem).values()
    assert np.all(answer.distance(np.float32(1000.0) * total) <= answer.budget)


def test_shapes_and_attributes_are_checked():
    """One sentence names what disagrees."""
    w, a, b = np.ones((2, 3)), np.ones((4, 3)), np.ones((2, 5))
    with pytest.raises(ShapeError, match=r"lora.merge: b has shape \(2, 5\) but signature b\[o,r\] needs \(2, 4\)"):
        lora_merge.merge(w, a, b, scaling=1.0)
    with pytest.raises(AttributeValueError, match=r"lora\.delta: attribute scaling is missing"):
        lora_merge.delta(a, np.ones((2, 4)))
    with pytest.raises(AttributeValueError, match="must be a finite number"):
        lora_merge.unmerge(w, a, np.ones((2, 4)), scaling=float("nan"))


def test_rank_zero_leaves_the_weight():
    """An empty sum is zero."""
    w = np.array([[0.1, -2.0]])
    np.testing.assert_array_equal(lora_merge.merge(w, np.zeros((0, 2)), np.zeros((1, 0)), scaling=3.0), w)
