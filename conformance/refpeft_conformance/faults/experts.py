"""Mistakes with the factors of several experts in two matrices."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, with_attributes, with_inputs

_BOTH = {"operations": "lora.experts*"}
_LAYER = {"operations": "lora.experts"}


@fault("experts", "columns of b counted by experts first", "b", "layout=", **_BOTH)
def _(problem, run):
    """As its rows in a are."""
    b, e = problem.inputs["b"], problem.dims["e"]
    return run(with_inputs(problem, b=b.reshape(len(b), e, -1).transpose(0, 2, 1).reshape(b.shape)))


@fault("experts", "rows of a counted by ranks first", "a", "layout=", **_BOTH)
def _(problem, run):
    """As the columns of b are."""
    a, e = problem.inputs["a"], problem.dims["e"]
    return run(with_inputs(problem, a=a.reshape(-1, e, a.shape[1]).transpose(1, 0, 2).reshape(a.shape)))


@fault("experts", "the first expert's update for all", "a", "layout=", **_BOTH)
def _(problem, run):
    a, b, e = problem.inputs["a"], problem.inputs["b"], problem.dims["e"]
    return run(with_inputs(problem, a=np.tile(a[: len(a) // e], (e, 1)), b=np.repeat(b[:, ::e], e, axis=1)))


@fault("experts", "the scaling over the ranks of all experts", "scaling=", "layout=", **_BOTH)
def _(problem, run):
    """alpha / (e r)."""
    return run(with_attributes(problem, scaling=problem.attributes["scaling"] / problem.dims["e"]))


@fault("experts", "tokens of the neighbouring expert", "expert", "layout=", **_LAYER)
def _(problem, run):
    expert = (problem.inputs["expert"] + 1) % problem.dims["e"]
    return run(problem.replace(inputs=problem.inputs | {"expert": expert}))


@fault("experts", "tokens sorted by expert and not put back", "expert", "layout=", **_LAYER)
def _(problem, run):
    """As where a kernel groups them, and writes in the order of the groups."""
    results, order = run(problem), np.argsort(problem.inputs["expert"], kind="stable")
    return results | {"y": results["y"][order]}


@fault("experts", "the last token's gradient only", "da", "expert", "layout=", **_LAYER)
def _(problem, run):
    """dA is assigned where it should be added."""
    if not problem.cotangents:
        return run(problem)
    expert, dy = problem.inputs["expert"], problem.cotangents["dy"]
    last = np.array([j not in expert[p + 1 :] for p, j in enumerate(expert)], bool)
    spared = np.where(last[:, None], dy, np.zeros_like(dy))
    return only("da", run(problem.replace(cotangents={"dy": spared})), run(problem))
