"""Provenance: the backend computes by itself. The reference is poisoned in every check; this one asks for nothing else."""

from __future__ import annotations

from refpeft_conformance.checks import Check


def checks(operation, dtype):
    """One claim: no call reaches the reference."""

    def examine(subject, problem, observed):
        subject.run(problem)

    def drawn(subject):
        return subject.problems(operation, dtype)

    yield Check(operation, dtype, "provenance", "computes without the reference", examine, drawn)
