"""Laws of PSOFT."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws

update_laws("psoft", zero="b")


@law("psoft.merge", "no rotation and unit magnitudes leave the weight")
def _(subject, problem, observed):
    """How training begins: R = I exactly, so that delta is zero."""
    names = {"skew": 0, "alpha": 1, "beta": 1}
    start = {n: np.full_like(problem.inputs[n], value) for n, value in names.items()}
    at_start = problem.replace(inputs=problem.inputs | start, cotangents={})
    equal("start", subject.run(at_start)["merged"], problem.inputs["weight"], observed)
