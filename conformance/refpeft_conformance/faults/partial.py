"""Mistakes with adapters that see a part of the tokens, or groups of inputs."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, with_attributes, with_inputs


def _with_offsets(problem, run, change):
    if "offsets" not in problem.inputs:
        return run(problem)
    offsets = change(problem.inputs["offsets"].astype(np.int64))
    allowed = np.clip(offsets, 0, problem.dims["t"]).astype(problem.inputs["offsets"].dtype)
    return run(problem.replace(inputs=problem.inputs | {"offsets": allowed}))


@fault("partial", "one token too many", "offsets", operations="alora.*")
def _(problem, run):
    return _with_offsets(problem, run, lambda offsets: offsets + 1)


@fault("partial", "one token too few", "offsets", operations="alora.*")
def _(problem, run):
    return _with_offsets(problem, run, lambda offsets: offsets - 1)


@fault("partial", "offsets counted from the start", "offsets", operations="alora.*")
def _(problem, run):
    return _with_offsets(problem, run, lambda offsets: problem.dims["t"] - offsets)


@fault("partial", "the offset of the first sequence for all", "offsets", operations="alora.*")
def _(problem, run):
    return _with_offsets(
        problem, run, lambda offsets: np.full_like(offsets, offsets.flat[0]) if offsets.size else offsets
    )


@fault("partial", "the adapter on all tokens in the backward pass", "offsets", "da", operations="alora.*")
def _(problem, run):
    if "da" not in problem.operation.gradients or not problem.cotangents:
        return run(problem)
    everywhere = _with_offsets(problem, run, lambda offsets: np.full_like(offsets, problem.dims["t"]))
    return {n: r if n == "y" else everywhere[n] for n, r in run(problem).items()}


@fault("partial", "the other way of pooling", "group=", "variant=", operations="qalora.*")
def _(problem, run):
    """A mean for a sum, up to the number of groups."""
    other = {"paper": "peft", "peft": "paper"}[problem.attributes["variant"]]
    return run(with_attributes(problem, variant=other))


@fault("partial", "the mean of a group", "group=", "scaling=", operations="qalora.*")
def _(problem, run):
    return run(with_attributes(problem, scaling=problem.attributes["scaling"] / problem.attributes["group"]))


@fault("partial", "groups taken by strides", "group=", "x", operations="qalora.*")
def _(problem, run):
    """Input j in group j modulo l: what a transposed reshape pools, by permuting x and the weight's columns."""
    group, i = problem.attributes["group"], problem.dims["i"]
    order = np.arange(i).reshape(group, i // group).T.reshape(-1)
    results = run(with_inputs(problem, x=problem.inputs["x"][..., order], weight=problem.inputs["weight"][:, order]))
    back = np.argsort(order)
    return results | {n: results[n][..., back] for n in ("dx", "dweight") if n in results}


@fault("partial", "the gradient to x through the first input of a group only", "group=", "dx", operations="qalora.*")
def _(problem, run):
    """The adapter's share kept where a group begins."""
    honest = run(problem)
    base = run(with_inputs(problem, b=np.zeros_like(problem.inputs["b"])))
    if "dx" not in honest:
        return honest
    first = np.arange(problem.dims["i"]) % problem.attributes["group"] == 0
    return only("dx", {"dx": np.where(first, honest["dx"], base["dx"])}, honest)
