"""Provenance: the backend computes by itself. The reference is poisoned in every check; this one asks for nothing else."""

from __future__ import annotations

from refpeft_conformance.checks import Check
from refpeft_conformance.strategies import problems


def checks(operation, dtype):
    """One claim: no call reaches the reference."""

    def examine(subject, problem, observed):
        subject.run(problem)

    def drawn(subject):
        return problems(operation, dtype=dtype, precision=subject.precision(dtype))

    yield Check(operation, dtype, "provenance", "computes without the reference", examine, drawn)
