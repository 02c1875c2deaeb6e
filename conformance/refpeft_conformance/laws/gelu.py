"""Laws of GELU."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law
from refpeft_conformance.verdict import Violation


@law("nn.gelu", "gelu(x) - gelu(-x) is x")
def _(subject, problem, observed):
    """Phi(x) + Phi(-x) = 1, in either form, within the budgets of both sides."""
    there = problem.replace(cotangents={})
    back = there.replace(inputs={"x": -problem.inputs["x"]})
    (one,), (two,) = (subject.compare(p, subject.run(p), ["y"]) for p in (there, back))
    left = one.got.astype(np.float64) - two.got.astype(np.float64)
    apart = np.abs(left - problem.inputs["x"].astype(np.float64))
    room = one.golden.budget + two.golden.budget
    room = room + np.abs(one.golden.value - two.golden.value - problem.inputs["x"].astype(np.float64))
    observed.elements += apart.size
    if np.any(apart > room):
        raise Violation(f"gelu(x) - gelu(-x) is {np.max(apart - room):.3g} farther from x than the budgets allow")


@law("nn.gelu", "zero gives zero with slope one half", gradients=True)
def _(subject, problem, observed):
    at_zero = problem.replace(inputs={"x": np.zeros_like(problem.inputs["x"])})
    results = subject.run(at_zero)
    equal("gelu of zero", results["y"], np.zeros_like(results["y"]), observed)
    half = problem.cotangents["dy"] * problem.inputs["x"].dtype.type(0.5)
    equal("slope at zero", results["dx"], half, observed)
