"""What merging costs on a backend: its own merge, measured against the adapted layer. A figure, not a verdict."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from refpeft.methods._cost import merging_cost, merging_methods
from refpeft.operation import find
from refpeft.problem import Problem
from refpeft_conformance.plan import Plan
from refpeft_conformance.verdict import Violation

DTYPES = ("float32", "bfloat16", "float16")


def measure(plan: Plan, operation: str) -> dict[str, dict[str, dict]]:
    """By method and dtype, for the methods that ``operation``, a family's merge, serves; what fails gives no figure."""
    subject, merge = plan.subject(), find(operation)
    costs: dict[str, dict[str, dict]] = {}
    for name, method in merging_methods(operation.partition(".")[0]).items():
        attributes = {n: v for n, v in method.attributes().items() if n in merge.attributes}

        def merged(weight, parameters, attributes=attributes):
            arrays = {a.name: parameters[a.name] for a in merge.signature.inputs if a.name in parameters}
            problem = Problem.of(merge, {"weight": weight} | arrays, attributes)
            return subject.run(problem)[merge.outputs[0].name]

        for dtype in DTYPES:
            if dtype not in merge.dtypes or subject.precision(dtype) is None:
                continue
            try:
                with np.errstate(all="ignore"):
                    costs.setdefault(name, {})[dtype] = asdict(merging_cost(method, dtype, merge=merged))
            except Violation:
                continue
    return costs
