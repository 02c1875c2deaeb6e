"""Golden files: the spec's stored problems, held to the stored values and budgets."""

from __future__ import annotations

from dataclasses import replace

from refpeft.golden import Golden, answer
from refpeft.numerics.precision import standard_precision
from refpeft_conformance.checks import Check
from refpeft_spec.golden import FOLDER, load_cases


def checks(operation, dtype):
    """One claim for the operation's golden files in this dtype, where it has any."""
    if not (FOLDER / operation.name).is_dir():
        return
    stored = {id(problem): (problem, values) for problem, values in load_cases(operation, dtype=dtype)}
    if not stored:
        return

    def examine(subject, problem, observed):
        if id(problem) not in stored:
            return subject.hold(problem, observed, gradients=False)
        results = subject.run(problem)
        values = stored[id(problem)][1]
        golden = {name: Golden(*values[name], dtype) for name, (_, dtype) in subject.due(problem).items()}
        if subject.precision(dtype) != standard_precision(dtype):
            declared = answer(problem, subject.precision(dtype))
            golden = {name: replace(g, budget=declared[name].budget) for name, g in golden.items()}
        subject.judge(problem, results, golden, observed)

    yield Check(
        operation,
        dtype,
        "golden",
        "golden files of the spec are met",
        examine,
        lambda subject: [p for p, _ in stored.values()],
    )
