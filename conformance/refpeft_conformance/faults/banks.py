"""Mistakes with factors that are read off frozen bases, banks of vectors or a shared vector."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs
from refpeft_conformance.faults.shards import moved


@fault("banks", "bases flattened in the other order", "base_b", "variant=", operations="randlora.*")
def _(problem, run):
    """Rank-major for base-major."""
    other = {"paper": "peft", "peft": "paper"}[problem.attributes["variant"]]
    return run(with_attributes(problem, variant=other))


@fault("banks", "gamma of the neighbouring base", "gammas", operations="randlora.*")
def _(problem, run):
    return run(with_inputs(problem, gammas=np.roll(problem.inputs["gammas"], 1, axis=0)))


@fault("banks", "lambda and gamma swapped where they are alike", "lambdas", "gammas", operations="randlora.*")
def _(problem, run):
    """Where lambda transposed has gamma's shape."""
    lambdas, gammas = problem.inputs["lambdas"], problem.inputs["gammas"]
    if lambdas.T.shape != gammas.shape:
        return run(problem)
    return run(with_inputs(problem, lambdas=gammas.T.copy(), gammas=lambdas.T.copy()))


@fault("banks", "update of a square weight transposed", "base_b", "x", operations="randlora.linear")
def _(problem, run):
    """The tie between tall and wide decided the other way."""
    o, i = problem.inputs["weight"].shape
    if o != i:
        return run(problem)
    zero = np.zeros_like(problem.inputs["weight"])
    x = np.eye(i, dtype=problem.inputs["x"].dtype)
    alone = problem.replace(
        inputs={n: a for n, a in problem.inputs.items() if n != "bias"} | {"weight": zero, "x": x}, cotangents={}
    )
    return moved(problem, run, ("lambdas",), wide(run(alone)["y"]))


@fault("banks", "softmax over the whole bank", "logits_a", operations="vblora.*")
def _(problem, run):
    """The chosen weights no longer add up to one."""
    vectors, k = wide(problem.inputs["vectors"]), problem.attributes["chosen"]

    def mixture(name):
        logits = wide(problem.inputs[name])
        p = np.exp(logits - logits.max(axis=-1, keepdims=True))
        p = p / p.sum(axis=-1, keepdims=True)
        return np.where(logits >= np.sort(logits, axis=-1)[..., -k, None], p, 0) @ vectors

    a, b = mixture("logits_a"), mixture("logits_b")
    o, i = problem.inputs["weight"].shape
    b = b.transpose(0, 2, 1).reshape(o, len(a))
    return moved(problem, run, ("vectors",), b @ a.reshape(len(a), i))


@fault("banks", "smallest logits chosen", "logits_a", operations="vblora.*")
def _(problem, run):
    return run(with_inputs(problem, logits_a=-problem.inputs["logits_a"], logits_b=-problem.inputs["logits_b"]))


@fault("banks", "one vector too few", "logits_a", operations="vblora.*")
def _(problem, run):
    return run(with_attributes(problem, chosen=max(1, problem.attributes["chosen"] - 1)))


@fault("banks", "stretches of B as rows of the rank", "logits_b", "[length]", operations="vblora.*")
def _(problem, run):
    """(stretch, rank) read as (rank, stretch), where there are as many of both."""
    logits = problem.inputs["logits_b"]
    if logits.shape[0] != logits.shape[1]:
        return run(problem)
    return run(with_inputs(problem, logits_b=logits.swapaxes(0, 1).copy()))


@fault("banks", "projections transposed", "projections", operations="tinylora.*")
def _(problem, run):
    return run(with_inputs(problem, projections=problem.inputs["projections"].swapaxes(1, 2).copy()))


@fault("banks", "mean of the projections instead of their sum", "projections", operations="tinylora.*")
def _(problem, run):
    return run(with_inputs(problem, v=wide(problem.inputs["v"]) / max(1, problem.inputs["v"].size)))


@fault("banks", "scale of B forgotten", "scale_b", operations="unilora.*")
def _(problem, run):
    return run(with_inputs(problem, scale_b=np.ones_like(problem.inputs["scale_b"])))


@fault("banks", "indices of A read column by column", "index_a", operations="unilora.*")
def _(problem, run):
    index = problem.inputs["index_a"]
    return run(with_inputs(problem, index_a=np.ascontiguousarray(index.T.reshape(index.shape))))


@fault("banks", "dtheta misses what comes through B", "dtheta", operations="unilora.*")
def _(problem, run):
    results = run(problem)
    if "dtheta" not in results:
        return results
    theta, index = wide(problem.inputs["theta"]), problem.inputs["index_b"]
    read = np.where(theta[index] == 0, 1.0, theta[index])
    through = np.zeros_like(theta)
    np.add.at(through, index, wide(results["dscale_b"]) / read * wide(problem.inputs["scale_b"]))
    return results | {"dtheta": wide(results["dtheta"]) - through}


@fault("banks", "group of the neighbouring row", "group", operations="adamss.*")
def _(problem, run):
    return run(with_inputs(problem, group=np.roll(problem.inputs["group"], 1)))


@fault("banks", "first group for all rows", "group", operations="adamss.*")
def _(problem, run):
    return run(with_inputs(problem, group=np.zeros_like(problem.inputs["group"])))


@fault("banks", "rows of a group overwrite each other in dinner", "dinner", "group", operations="adamss.*")
def _(problem, run):
    """Only the last row of each group contributes."""
    results = run(problem)
    if "dinner" not in results:
        return results
    group, outer = problem.inputs["group"], problem.inputs["outer"].copy()
    last = {int(g): k for k, g in enumerate(group)}
    outer[[k for k, g in enumerate(group) if last[int(g)] != k]] = 0
    return results | {"dinner": run(with_inputs(problem, outer=outer))["dinner"]}
