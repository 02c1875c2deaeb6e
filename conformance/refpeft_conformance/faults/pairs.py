"""Mistakes with features that are turned in pairs."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs


@fault("pairs", "neighbours paired in place of halves of a group", "theta", "group=", operations="road.*")
def _(problem, run):
    """Each group of two; where the groups are of two there is no other pair, and the order of outputs is turned."""
    group = problem.attributes["group"]
    if group > 2:
        return run(with_attributes(problem, group=2))
    return run(with_inputs(problem, theta=problem.inputs["theta"][::-1]))


@fault("pairs", "the angle turned the other way", "theta", "alpha", operations="road.*")
def _(problem, run):
    return run(with_inputs(problem, theta=-problem.inputs["theta"]))


@fault("pairs", "the scale of the pairs forgotten", "theta", "alpha", operations="road.*")
def _(problem, run):
    return run(with_inputs(problem, alpha=np.ones_like(problem.inputs["alpha"])))


@fault("pairs", "the bias not turned", "theta", "bias", operations="road.*")
def _(problem, run):
    """R W x + bias."""
    if "bias" not in problem.inputs:
        return run(problem)
    without = problem.replace(inputs={n: a for n, a in problem.inputs.items() if n != "bias"})
    return run(problem) | {"y": wide(run(without)["y"]) + wide(problem.inputs["bias"])}


@fault("pairs", "the gradient to the angle of the wrong sign", "dtheta", operations="road.*")
def _(problem, run):
    results = run(problem)
    return results | ({"dtheta": -wide(results["dtheta"])} if "dtheta" in results else {})


@fault("pairs", "the parameters of cosine and sine exchanged", "theta", "variant=", operations="road.*")
def _(problem, run):
    """road_4 with the halves of each group's parameters changed over."""
    if problem.attributes["variant"] != "road_4":
        return run(problem)
    group = problem.attributes["group"]

    def exchanged(v):
        return v.reshape(-1, 2, group)[:, ::-1].reshape(-1)

    i = problem.inputs
    results = run(with_inputs(problem, theta=exchanged(i["theta"]), alpha=exchanged(i["alpha"])))
    return results | {n: exchanged(results[n]) for n in ("dtheta", "dalpha") if n in results}
