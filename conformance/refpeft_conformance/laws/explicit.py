"""The law that most updates have: on a zero weight, the merge is the update, which NumPy writes in another way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refpeft_conformance.laws import equal, law
from refpeft_conformance.strategies import is_exact


def explicit_update(family: str, said: str, expected: Callable) -> None:
    """Declare that ``family.merge`` on a zero weight gives ``expected(inputs, attributes)``, number for number.

    Inputs are float64 arrays by name, the zero weight among them.
    """

    @law(f"{family}.merge", f"the update of a zero weight is {said}", regime="exact")
    def _(subject, problem, observed):
        zero = np.zeros_like(problem.inputs["weight"])
        alone = problem.replace(inputs=problem.inputs | {"weight": zero}, cotangents={})
        if not is_exact(alone, subject.precision(problem.dtype)):
            return
        inputs = {n: a.astype(np.float64) if a.dtype.kind not in "iub" else a for n, a in alone.inputs.items()}
        equal(said, subject.run(alone)["merged"].astype(np.float64), expected(inputs, alone.attributes), observed)
