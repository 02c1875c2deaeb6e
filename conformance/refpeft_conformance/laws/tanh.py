"""Laws of the hyperbolic tangent."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law
from refpeft_conformance.verdict import Violation


@law("nn.tanh", "tanh(-x) is -tanh(x)")
def _(subject, problem, observed):
    """Within the budgets of both sides."""
    there = problem.replace(cotangents={})
    back = there.replace(inputs={"x": -problem.inputs["x"]})
    (one,), (two,) = (subject.compare(p, subject.run(p), ["y"]) for p in (there, back))
    apart = np.abs(one.got.astype(np.float64) + two.got.astype(np.float64))
    observed.elements += apart.size
    if np.any(apart > one.golden.budget + two.golden.budget):
        raise Violation(f"tanh(x) + tanh(-x) is {np.max(apart):.3g}, which is more than the budgets allow")


@law("nn.tanh", "zero gives zero with slope one", gradients=True)
def _(subject, problem, observed):
    at_zero = problem.replace(inputs={"x": np.zeros_like(problem.inputs["x"])})
    results = subject.run(at_zero)
    equal("tanh of zero", results["y"], np.zeros_like(results["y"]), observed)
    equal("slope at zero", results["dx"], problem.cotangents["dy"], observed)
