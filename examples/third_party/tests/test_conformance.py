"""The conformance kit in one's own test suite: problems of every regime, each result within its error budget."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refpeft_reversed.backend import ReversedBackend

from refpeft_conformance.strategies import problems, regimes_of
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation

BACKEND = ReversedBackend()
CASES = [(operation, regime) for operation in BACKEND.operations() for regime in (*regimes_of(operation), "exact")]


@pytest.mark.parametrize(("operation", "regime"), CASES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_results_lie_within_their_budgets(operation, regime, data):
    """Outputs and gradients lie within the budget that follows from the declared precision."""
    subject = Subject(BACKEND)
    problem = data.draw(problems(operation, dtype="float32", regime=regime, precision=subject.precision("float32")))
    for gradients in (False, True):
        subject.hold(problem, Observation(), gradients=gradients)
