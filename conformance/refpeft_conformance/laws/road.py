"""Laws of RoAd."""

from __future__ import annotations

import numpy as np

from refpeft.golden import evaluate
from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, merged_layer
from refpeft_conformance.verdict import Violation


@law("road.linear", "training begins at the base layer", regime="exact", needs=("nn.linear",))
def _(subject, problem, observed):
    """Angles of zero and scales of one, bit for bit."""
    equal("start", subject.run(_at_start(problem))["y"], subject.run(_base(problem))["y"], observed)


@law("road.merge", "angles of zero and scales of one leave the weight")
def _(subject, problem, observed):
    equal("start", subject.run(_at_start(problem))["merged"], problem.inputs["weight"], observed)


@law("road.linear", "with one unit scale a pair keeps its length")
def _(subject, problem, observed):
    """road_1 with scales of one is a rotation: each pair is as long as that of the base layer, within the pair's budget."""
    if problem.attributes["variant"] != "road_1":
        return
    ones = {"alpha": np.ones_like(problem.inputs["alpha"])}
    turned = problem.replace(inputs=problem.inputs | ones, cotangents={})
    (y,) = subject.compare(turned, subject.run(turned), ["y"])
    arrays = {n: a.astype(np.float64) for n, a in _base(problem).inputs.items()}
    h = evaluate(Problem.of("nn.linear", arrays, {}))["y"]
    terms = np.abs(arrays["x"]) @ np.abs(arrays["weight"]).T + np.abs(arrays.get("bias", 0.0))
    own = (problem.dims["i"] + 4) * 2.0**-52 * terms
    half = problem.attributes["group"] // 2
    before, after, room, rounding = (
        np.sqrt(np.sum(v.reshape(-1, 2, half) ** 2, axis=1))
        for v in (h, y.got.astype(np.float64), y.golden.budget, own)
    )
    observed.elements += before.size
    wrong = np.abs(after - before) > room + rounding
    if np.any(wrong):
        at = tuple(int(j) for j in np.argwhere(wrong)[0])
        raise Violation(f"a pair has length {after[at]:g} but had {before[at]:g}", {"y": y.got})


@law("road.linear", "road_1 is road_2 with the parameters of pairs equal")
def _(subject, problem, observed):
    """Both halves of a group get what the pairs share."""
    if problem.attributes["variant"] != "road_1":
        return
    half = problem.attributes["group"] // 2
    doubled = {n: np.repeat(problem.inputs[n].reshape(-1, 1, half), 2, axis=1).reshape(-1) for n in ("theta", "alpha")}
    one = problem.replace(cotangents={})
    two = one.replace(inputs=one.inputs | doubled, attributes=one.attributes | {"variant": "road_2"})
    agree("doubled", subject, (one, subject.run(one)), (two, subject.run(two)), {"y": "y"}, observed)


@law("road.merge", "the merged layer computes what the adapted layer does", needs=("nn.linear", "road.linear"))
def _(subject, problem, observed):
    """On an input of small integers, within both budgets."""
    merged_layer(subject, problem.replace(cotangents={}), "road.linear", observed)


def _at_start(problem):
    start = {"theta": np.zeros_like(problem.inputs["theta"]), "alpha": np.ones_like(problem.inputs["alpha"])}
    return problem.replace(inputs=problem.inputs | start, cotangents={})


def _base(problem):
    arrays = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
    return Problem.of("nn.linear", arrays, {}, {}, problem.dtype)
