"""Mistakes with chains of Householder reflections."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_attributes, with_inputs
from refpeft_conformance.faults.convolution import convolved


@fault("reflection", "the reflections in reverse", "du", operations="hra.*")
def _(problem, run):
    results = run(with_inputs(problem, u=problem.inputs["u"][:, ::-1]))
    return results | ({"du": results["du"][:, ::-1]} if "du" in results else {})


@fault("reflection", "the reflections in reverse on the way back to x", "dx", "u", operations="hra.*")
def _(problem, run):
    """dx = dz Pᵀ."""
    return only("dx", run(with_inputs(problem, u=problem.inputs["u"][:, ::-1])), run(problem))


def _by_hand(problem, results, factor: float, normalised: bool):
    """The forward of the chain with I - factor u uᵀ for each reflection."""
    i, u = problem.inputs, wide(problem.inputs["u"])
    if normalised:
        u = u / np.linalg.norm(u, axis=0)
    p = np.eye(len(u))
    for q in u.T:
        p = p - factor * np.outer(p @ q, q)
    if "merged" in results:
        return results | {"merged": wide(i["weight"]) @ p}
    bias = wide(i["bias"]) if "bias" in i else np.zeros(len(i["weight"]))
    if "kh" in problem.dims:
        kernel = (wide(i["weight"]).reshape(len(i["weight"]), -1) @ p).reshape(i["weight"].shape)
        return results | {"y": convolved(problem, kernel) + bias[:, None, None]}
    return results | {"y": wide(i["x"]) @ p.T @ wide(i["weight"]).T + bias}


@fault("reflection", "a vector not normalised", "u", "variant=", operations="hra.*")
def _(problem, run):
    """I - 2 u uᵀ."""
    return _by_hand(problem, run(problem), 2.0, normalised=False)


@fault("reflection", "a projection in place of a reflection", "u", "variant=", operations="hra.*")
def _(problem, run):
    """I - q qᵀ."""
    return _by_hand(problem, run(problem), 1.0, normalised=True)


@fault("reflection", "Gram-Schmidt forgotten", "u", "variant=", operations="hra.*")
def _(problem, run):
    return run(with_attributes(problem, variant="chain"))


@fault("reflection", "the gradient of a reflection given to the next", "du", operations="hra.*")
def _(problem, run):
    results = run(problem)
    return results | ({"du": np.roll(results["du"], 1, axis=1)} if "du" in results else {})
