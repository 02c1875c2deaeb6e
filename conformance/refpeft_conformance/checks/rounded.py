"""Rounded lane: on arbitrary inputs every element lies within its error budget."""

from __future__ import annotations

from refpeft_conformance.checks import Check
from refpeft_conformance.strategies import regimes_of


def checks(operation, dtype):
    """One claim for each regime and direction."""
    for regime in regimes_of(operation):
        yield _lane(operation, dtype, regime, gradients=False)
        if operation.has_vjp:
            yield _lane(operation, dtype, regime, gradients=True)


def _lane(operation, dtype, regime: str, *, gradients: bool) -> Check:
    def drawn(subject):
        return subject.problems(operation, dtype, regime=regime, gradients=gradients)

    def examine(subject, problem, observed):
        subject.hold(problem, observed, gradients=gradients)

    what = "gradients" if gradients else "outputs"
    share = 0.3 if regime == "long" else 1.0
    return Check(
        operation, dtype, "rounded", f"{what} within budget on {regime} inputs", examine, drawn, gradients, share=share
    )
