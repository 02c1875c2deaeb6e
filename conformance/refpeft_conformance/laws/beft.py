"""Laws of a bias beside the layer's own."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law


@law("beft.linear", "bias and shift are one bias", regime="exact", needs=("nn.linear",))
def _(subject, problem, observed):
    """On small integers bias + shift has no rounding: the layer with it is the merged one, bit for bit."""
    i = problem.inputs
    bias = i["shift"] + i.get("bias", np.zeros_like(i["shift"]))
    merged = Problem.of("nn.linear", {"x": i["x"], "weight": i["weight"], "bias": bias}, {}, {}, problem.dtype)
    adapted = problem.replace(cotangents={})
    equal("one bias", subject.run(adapted)["y"], subject.run(merged)["y"], observed)


@law("beft.linear", "a zero shift leaves the base layer", regime="exact", needs=("nn.linear",))
def _(subject, problem, observed):
    start = problem.replace(inputs=problem.inputs | {"shift": np.zeros_like(problem.inputs["shift"])}, cotangents={})
    arrays = {n: a for n, a in problem.inputs.items() if n != "shift"}
    base = Problem.of("nn.linear", arrays, {}, {}, problem.dtype)
    equal("zero shift", subject.run(start)["y"], subject.run(base)["y"], observed)
