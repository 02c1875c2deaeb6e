"""What merging costs on a backend: its own merge, measured against the adapted layer. A figure, not a verdict."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from refpeft.merging import DTYPES, merging_cost, merging_methods
from refpeft.operation import find
from refpeft_conformance.plan import Plan
from refpeft_conformance.verdict import Outside, Violation


def measure(plan: Plan, operation: str) -> dict[str, dict[str, dict]]:
    """By method and dtype, for the methods that ``operation``, a family's merge, serves; none for what fails or is not taken."""
    subject, merge = plan.subject(), find(operation)
    costs: dict[str, dict[str, dict]] = {}
    for name, method in merging_methods(operation.partition(".")[0]).items():

        def merged(weight, parameters, method=method):
            return subject.run(method.merging(weight, parameters))[merge.outputs[0].name]

        for dtype in DTYPES:
            if dtype not in merge.dtypes or subject.precision(dtype) is None:
                continue
            try:
                with np.errstate(all="ignore"):
                    costs.setdefault(name, {})[dtype] = asdict(merging_cost(method, dtype, merge=merged))
            except (Outside, Violation):
                continue
    return costs
