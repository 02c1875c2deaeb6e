"""Mistakes with activation functions."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_attributes

GELU_DTYPES = ("float64", "float32")
"""Where the forms of gelu lie farther apart than rounding: by up to 4.8e-4, beside values around 1."""


@fault("nonlinearity", "the other form of gelu", "approximate=", operations="nn.gelu", dtypes=GELU_DTYPES)
def _(problem, run):
    """tanh for erf, or erf for tanh."""
    other = {"none": "tanh", "tanh": "none"}[problem.attributes["approximate"]]
    return run(with_attributes(problem, approximate=other))


@fault(
    "nonlinearity",
    "the gradient of the other form of gelu",
    "approximate=",
    "dx",
    operations="nn.gelu",
    dtypes=GELU_DTYPES,
)
def _(problem, run):
    other = {"none": "tanh", "tanh": "none"}[problem.attributes["approximate"]]
    return only("dx", run(with_attributes(problem, approximate=other)), run(problem))


@fault("nonlinearity", "gelu by the sigmoid of 1.702 x", "approximate=", operations="nn.gelu")
def _(problem, run):
    """The paper's other approximation, which is neither of the two."""
    x = wide(problem.inputs["x"])
    with np.errstate(over="ignore"):
        return run(problem) | {"y": x / (1 + np.exp(-1.702 * x))}


@fault("nonlinearity", "the slope of gelu without the density", "approximate=", "dx", operations="nn.gelu")
def _(problem, run):
    """dy Phi(x): what is left when x phi(x) is forgotten."""
    results = run(problem)
    if "dx" not in results:
        return results
    x = wide(problem.inputs["x"])
    share = np.divide(wide(results["y"]), x, out=np.full(x.shape, 0.5), where=x != 0)
    return only("dx", {"dx": wide(problem.cotangents["dy"]) * share}, results)


@fault("nonlinearity", "the slope of tanh without the square", "dx", operations="nn.tanh")
def _(problem, run):
    """dy (1 - y)."""
    results = run(problem)
    if "dx" not in results:
        return results
    return only("dx", {"dx": wide(problem.cotangents["dy"]) * (1 - wide(results["y"]))}, results)


@fault("nonlinearity", "relu that leaks", operations="nn.relu")
def _(problem, run):
    """A hundredth of what is negative."""
    x = wide(problem.inputs["x"])
    return run(problem) | {"y": np.where(x > 0, x, x / 100)}


@fault("nonlinearity", "the slope of relu everywhere", "dx", operations="nn.relu")
def _(problem, run):
    """dy."""
    return only("dx", {"dx": problem.cotangents.get("dy")}, run(problem))
