"""Discontinuities: a neighbouring code is right only where the input lies within its budget of the boundary.

Elements that pass only for that reason are counted.
"""

from __future__ import annotations

from refpeft_conformance.checks import Check


def checks(operation, dtype):
    """One claim for each structured regime of an operation with discrete outputs."""
    if "discrete" not in operation.kinds.values():
        return
    for structure in operation.structured:
        yield _at(operation, dtype, structure.__name__)


def _at(operation, dtype, regime: str) -> Check:
    def examine(subject, problem, observed):
        subject.hold(problem, observed, gradients=False)

    def drawn(subject):
        return subject.problems(operation, dtype, regime=regime, gradients=False)

    return Check(
        operation, dtype, "discontinuities", f"codes change only at a boundary on {regime} inputs", examine, drawn
    )
