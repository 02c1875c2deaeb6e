"""Exact lane: on inputs that `Exact` accepts there is one right answer, and no tolerance exists."""

from __future__ import annotations

import numpy as np

from refpeft.golden import stored
from refpeft_conformance.checks import Check
from refpeft_conformance.strategies import is_exact
from refpeft_conformance.verdict import Violation


def checks(operation, dtype):
    """Outputs equal as numbers; gradients too."""
    yield _lane(operation, dtype, gradients=False)
    if operation.has_vjp:
        yield _lane(operation, dtype, gradients=True)


def _lane(operation, dtype, *, gradients: bool) -> Check:
    by_steps = not {"proven", "perturbed"} & set(operation.kinds.values())

    def drawn(subject):
        return subject.problems(operation, dtype, regime="exact", gradients=gradients)

    def examine(subject, problem, observed):
        if not by_steps and not is_exact(problem, subject.precision(dtype)):
            return
        results, expected = subject.run(problem), stored(problem)
        names = (
            subject.wanted(problem)
            if gradients
            else [o.name for o in operation.outputs if operation.kinds[o.name] != "discrete"]
        )
        for name in ["d" + n for n in names] if gradients else names:
            wrong = ~((results[name] == expected[name]) | (np.isnan(results[name]) & np.isnan(expected[name])))
            observed.elements += wrong.size
            if np.any(wrong):
                at = tuple(int(i) for i in np.argwhere(wrong)[0])
                raise Violation(
                    f"{name}{list(at)} must be exactly {expected[name][at]}, but is {results[name][at]} "
                    f"({int(wrong.sum())} of {wrong.size} elements differ)",
                    results,
                )

    what = "gradients" if gradients else "outputs"
    return Check(operation, dtype, "exact", f"{what} equal as numbers", examine, drawn, gradients)
