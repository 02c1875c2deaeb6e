"""Laws: what holds between several calls of a backend, whatever its rounding. They are declared in `refpeft_conformance.laws`."""

from __future__ import annotations

from refpeft_conformance.checks import Check
from refpeft_conformance.laws import laws_of


def checks(operation, dtype):
    """One claim for each law of the operation in the dtype."""
    for law in (one for one in laws_of(operation) if dtype in one.dtypes):
        yield _check(operation, dtype, law)


def _check(operation, dtype, law) -> Check:
    def drawn(subject):
        return subject.problems(operation, dtype, regime=law.regime, gradients=law.gradients)

    return Check(operation, dtype, "laws", law.claim, law.examine, drawn, law.gradients, law.needs)
