"""A backend that asks the reference."""

from __future__ import annotations

from refpeft_conformance.faults import fault, wide


@fault("provenance", "reference called silently", explains=False)
def _(problem, run):
    operation = problem.operation
    inputs = [x if x is None or x.dtype.kind in "iub" else wide(x) for x in problem.positional]
    outputs = operation.forward(*inputs, **problem.attributes)
    return run(problem) | dict(
        zip((o.name for o in operation.outputs), outputs if isinstance(outputs, tuple) else (outputs,))
    )
