"""Mistakes with a gradient that is an approximation by definition."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_attributes, with_inputs


@fault("approximation", "the exact gradient to a", "v", "da", operations="velora.*")
def _(problem, run):
    """x for what was kept of x."""
    results = run(problem)
    if "da" not in results:
        return results
    i = {n: wide(a) for n, a in problem.inputs.items()}
    dy = wide(problem.cotangents["dy"])
    dh = problem.attributes["scaling"] * dy.reshape(-1, dy.shape[-1]) @ i["b"]
    return results | {"da": dh.T @ i["x"].reshape(-1, i["x"].shape[-1])}


@fault("approximation", "kept numbers put together without their factor", "restore=", "da", operations="velora.*")
def _(problem, run):
    return run(with_attributes(problem, restore=1.0))


@fault("approximation", "projected in the forward pass too", "v", "x", operations="velora.*")
def _(problem, run):
    """y of what was kept of x, on the adapter's path."""
    i, results = {n: wide(a) for n, a in problem.inputs.items()}, run(problem)
    parts = i["x"].reshape(*i["x"].shape[:-1], problem.attributes["groups"], -1)
    kept = (problem.attributes["restore"] * ((parts @ i["v"])[..., None] * i["v"])).reshape(i["x"].shape)
    lost = problem.attributes["scaling"] * ((kept - i["x"]) @ i["a"].T) @ i["b"].T
    return results | {"y": wide(results["y"]) + lost}


@fault("approximation", "v projected on its negative", "v", "da", operations="velora.*")
def _(problem, run):
    """The sign lost on one of the two ways."""
    return only("da", {n: -wide(r) for n, r in run(problem).items()}, run(problem))


@fault("approximation", "the first entry of v for all", "v", operations="velora.*")
def _(problem, run):
    v = problem.inputs["v"]
    return run(with_inputs(problem, v=np.broadcast_to(v[:1], v.shape).copy()))
