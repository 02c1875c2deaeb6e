"""LoRA's factor: alpha over r, or over its root."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refpeft import golden, plugins
from refpeft.errors import AttributeValueError, ShapeError
from refpeft.numerics.formats import FLOAT64, FORMATS
from refpeft.numerics.interpretations import ComplexStep
from refpeft.ops.lora_scaling import scaling
from refpeft.problem import Problem
from refpeft_conformance.strategies import problems, regimes_of
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation

few = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def drawn():
    """Problems of every dtype and regime."""
    kinds = st.tuples(st.sampled_from(list(FORMATS)), st.sampled_from((*regimes_of("lora.scaling"), "exact")))
    return kinds.flatmap(lambda kind: problems("lora.scaling", dtype=kind[0], regime=kind[1]))


def test_both_variants_have_their_values():
    """16 over 4 is 4, over its root 8."""
    assert scaling(np.float64(16.0), rank=4) == 4.0
    assert scaling(np.float64(16.0), rank=4, variant="rslora") == 8.0


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_the_gradient_is_the_derivative(variant):
    """s is linear in alpha, so that the derivative by complex step is the factor itself."""
    alpha, three = np.float64(5.0), np.float64(3.0)
    along = scaling.forward(ComplexStep.along(alpha, 1.0), rank=three, variant=variant).derivative
    (back,) = scaling.backward(np.float64(1.0), alpha, rank=three, variant=variant)
    assert abs(along - back) <= 4 * FLOAT64.unit * back


@pytest.mark.parametrize("dtype", FORMATS)
def test_division_root_and_reciprocal_are_admitted(dtype):
    """Dividing alpha and multiplying it by the rounded reciprocal both lie within the budget, for any rank."""
    alpha = FORMATS[dtype].dtype.type(11.0)
    accumulate = {"bfloat16": np.float32, "float16": np.float32}.get(dtype, alpha.dtype.type)
    for rank in range(1, 40):
        for variant, divisor in (("lora", accumulate(rank)), ("rslora", accumulate(math.sqrt(rank)))):
            problem = Problem.of("lora.scaling", {"alpha": alpha}, {"rank": rank, "variant": variant})
            answer = golden.answer(problem)["s"]
            for got in (accumulate(alpha) / divisor, accumulate(alpha) * (accumulate(1) / divisor)):
                assert answer.distance(got.astype(alpha.dtype)) <= answer.budget


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_implementations_stay_within_the_budget(backend):
    """No false alarm over dtypes and regimes."""
    if backend == "torch":
        pytest.importorskip("torch")
    subject = Subject(plugins.backend(backend))

    @settings(few, max_examples=100)
    @given(problem=drawn())
    def holds(problem):
        for gradients in (False, True):
            subject.hold(problem, Observation(), gradients=gradients)

    holds()


def test_the_root_is_taken_beyond_double_precision():
    """The golden value in float64 is alpha over the real root of 2, not over its float64: 2 s s = 1."""
    problem = Problem.of("lora.scaling", {"alpha": np.float64(1.0)}, {"rank": 2, "variant": "rslora"})
    answer = golden.answer(problem)["s"]
    s = Fraction(float(answer.value)) + Fraction(float(answer.rest))
    assert abs(2 * s * s - 1) < Fraction(1, 2**98)


@pytest.mark.parametrize("rank", [0, -2, 2.5])
def test_a_rank_that_counts_nothing_is_refused(rank):
    """It must be an integer of at least 1."""
    with pytest.raises(ShapeError, match=r"lora\.scaling: the signature needs rank"):
        scaling(np.float64(1.0), rank=rank)


def test_an_unknown_variant_is_refused():
    """The set of variants is closed."""
    with pytest.raises(AttributeValueError, match=r"variant must be one of \['lora', 'rslora'\], but 'dora' came"):
        scaling(np.float64(1.0), rank=1, variant="dora")
