"""Mistakes with vectors that scale activations."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_attributes, with_inputs


@fault("activations", "the scale on the other side where the weight is square", "scale", "side=", operations="ia3.*")
def _(problem, run):
    """Rows for columns: seen only where both have one length."""
    convolved = "kh" in problem.dims
    inputs = problem.dims["cg"] * problem.attributes["groups"] if convolved else problem.dims["i"]
    if problem.dims["o"] != inputs:
        return run(problem)
    other = {"output": "input", "input": "output"}[problem.attributes["side"]]
    return run(with_attributes(problem, side=other))


@fault("activations", "a bias that is not scaled with the outputs", "scale", "side=", "bias", operations="ia3.*")
def _(problem, run):
    """l o (x Wᵀ) + bias for l o (x Wᵀ + bias)."""
    if "bias" not in problem.inputs or problem.attributes["side"] == "input":
        return run(problem)
    results = run(problem)
    bare = run(problem.replace(inputs={n: a for n, a in problem.inputs.items() if n != "bias"}))
    bias = wide(problem.inputs["bias"])
    return results | {"y": wide(bare["y"]) + (bias[:, None, None] if "kh" in problem.dims else bias)}


@fault("activations", "the first group's scales for every group", "scale", "groups=", operations="ia3.conv2d*")
def _(problem, run):
    """l broadcast against a kernel of c / groups channels."""
    if problem.attributes["side"] == "output":
        return run(problem)
    first = problem.inputs["scale"][: problem.dims["cg"]]
    return run(with_inputs(problem, scale=np.tile(first, problem.attributes["groups"])))


@fault("activations", "a scale that is learned as its distance from one", "scale", "side=", operations="ia3.*")
def _(problem, run):
    """(1 + l) o v for l o v."""
    return run(with_inputs(problem, scale=1 + wide(problem.inputs["scale"])))


@fault("activations", "the gradient to the scale from the scaled activations", "dscale", "side=", operations="ia3.*")
def _(problem, run):
    """dl = sum of dy o y: l a second time."""
    results = run(problem)
    if "dscale" not in results:
        return results
    return only("dscale", {"dscale": wide(results["dscale"]) * wide(problem.inputs["scale"])}, results)


@fault("activations", "the scale gets no gradient", "dscale", "side=", operations="ia3.*")
def _(problem, run):
    results = run(problem)
    return results | ({"dscale": np.zeros_like(results["dscale"])} if "dscale" in results else {})
