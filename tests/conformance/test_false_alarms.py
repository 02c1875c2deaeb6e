"""Honest backends that differ in how they sum raise no alarm. A sample; `benchmarks/evidence.py` runs all of it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refpeft_conformance.strategies import problems, regimes_of
from refpeft_conformance.subject import Subject
from refpeft_conformance.summation import ORDERS, SummingBackend
from refpeft_conformance.verdict import Observation


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("order", ORDERS)
def test_an_order_of_summation_is_no_failure(order, dtype):
    """lora.linear with sums in this order stays within its budget, outputs and gradients, in every regime."""
    subject = Subject(SummingBackend(order))
    regimes = [r for r in regimes_of("lora.linear") if r != "long"]

    @settings(max_examples=25, database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(regimes).flatmap(lambda r: problems("lora.linear", dtype=dtype, regime=r)))
    def holds(problem):
        subject.hold(problem, Observation(), gradients=False)
        subject.hold(problem, Observation(), gradients=True)

    holds()
