"""Laws of the rectified linear unit."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law


@law("nn.relu", "relu(x) - relu(-x) is x")
def _(subject, problem, observed):
    """Of the two one is x or -x, the other zero: nothing is rounded."""
    there = problem.replace(cotangents={})
    back = there.replace(inputs={"x": -problem.inputs["x"]})
    one, two = (subject.run(p)["y"] for p in (there, back))
    equal("relu(x) - relu(-x)", one - two, problem.inputs["x"], observed)


@law("nn.relu", "what is not positive gives zero with slope zero", gradients=True)
def _(subject, problem, observed):
    below = problem.replace(inputs={"x": -np.abs(problem.inputs["x"])})
    for name, result in subject.run(below).items():
        equal(name, result, np.zeros_like(result), observed)
