"""Golden files: the spec's stored problems, held to the stored values and budgets."""

from __future__ import annotations

import refpeft_spec
from refpeft.oracle import compare
from refpeft_conformance.checks import Check
from refpeft_conformance.verdict import Violation


def checks(operation, dtype):
    """One claim for the operation's golden files in this dtype, where it has any."""
    stored = [(p, values) for p, values in getattr(refpeft_spec,"load_cases",lambda n:[])(operation.name) if p.dtype == dtype]
    if not stored:
        return

    def examine(subject, problem, observed):
        known = {id(p): values for p, values in stored}.get(id(problem))
        if known is None:
            return subject.hold(problem, observed, gradients=False)
        results = subject.run(problem)
        comparisons = [
            compare(problem, name, golden, results[name]) for name, golden in known.items() if name in results
        ]
        for comparison in comparisons:
            observed.add(comparison)
        wrong = [str(c) for c in comparisons if not c.conforms]
        if wrong:
            raise Violation("; ".join(wrong), results)

    yield Check(
        operation, dtype, "golden", "golden files of the spec are met", examine, lambda subject: [p for p, _ in stored]
    )
