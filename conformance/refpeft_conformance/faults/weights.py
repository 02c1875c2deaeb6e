"""Mistakes with updates that depend on the weight."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs
from refpeft_conformance.faults.shards import moved


def _answer(problem, *, shortcuts: bool = True, rectified: bool = True):
    """PEANuT's update with a part left out."""
    i = {n: wide(a) for n, a in problem.inputs.items()}
    h = i["weight"].T @ i["first"].T
    levels, h = [], np.maximum(h, 0) if rectified else h
    for encoder in i["encoders"]:
        levels.append(h)
        h = np.maximum(h @ encoder.T, 0)
    for decoder in i["decoders"]:
        h = np.maximum(h @ decoder.T, 0) + (levels.pop() if shortcuts else 0)
    return problem.attributes["scaling"] * (h @ i["last"].T).T


@fault("weights", "shortcuts forgotten", "encoders", operations="peanut.*")
def _(problem, run):
    return moved(problem, run, ("last",), _answer(problem, shortcuts=False))


@fault("weights", "first level not rectified", "first", operations="peanut.*")
def _(problem, run):
    return moved(problem, run, ("last",), _answer(problem, rectified=False))


@fault("weights", "encoders and decoders swapped", "encoders", operations="peanut.*")
def _(problem, run):
    i = problem.inputs
    return run(with_inputs(problem, encoders=i["decoders"], decoders=i["encoders"]))


@fault("weights", "levels of the decoders in reverse", "decoders", operations="peanut.*")
def _(problem, run):
    return run(with_inputs(problem, decoders=problem.inputs["decoders"][::-1].copy()))


@fault("weights", "the other kind of projection", "projection=", operations="deft.*")
def _(problem, run):
    other = {"relu": "orthogonal", "orthogonal": "relu"}[problem.attributes["projection"]]
    return run(with_attributes(problem, projection=other))


@fault("weights", "both sides of the projection rectified", "projection=", operations="deft.*")
def _(problem, run):
    p = np.maximum(wide(problem.inputs["subspace"]), 0)
    if problem.attributes["projection"] != "relu":
        return run(problem)
    fill = problem.attributes["scaling"] * wide(problem.inputs["fill"])
    taken = p.T @ wide(problem.inputs["weight"])
    return moved(problem, run, ("subspace",), p @ ((fill if problem.attributes["variant"] == "deft" else 0) - taken))


@fault("weights", "subspace filled but not taken out", "fill", operations="deft.*")
def _(problem, run):
    if problem.attributes["variant"] != "deft":
        return run(problem)
    delta = problem.attributes["scaling"] * wide(problem.inputs["subspace"]) @ wide(problem.inputs["fill"])
    return moved(problem, run, ("subspace",), delta)


@fault("weights", "scale and shift swapped", "scale_left", "shift_left", operations="glora.*")
def _(problem, run):
    i = problem.inputs
    swapped = {"scale_left": i["shift_left"], "scale_right": i["shift_right"]}
    return run(with_inputs(problem, **swapped, shift_left=i["scale_left"], shift_right=i["scale_right"]))


@fault("weights", "the weight replaced by its scaled self", "scale_left", "shift_left", operations="glora.*")
def _(problem, run):
    """W o A + B for W + W o A + B, as if the scale were 1 + A already."""
    i = {n: wide(a) for n, a in problem.inputs.items()}
    delta = i["weight"] * (i["scale_left"] @ i["scale_right"] - 1) + i["shift_left"] @ i["shift_right"]
    return moved(problem, run, ("scale_left", "shift_left"), delta)


@fault("weights", "d and e swapped", "d", "e", operations="glora.bias")
def _(problem, run):
    return run(with_inputs(problem, d=problem.inputs["e"], e=problem.inputs["d"]))


@fault("weights", "the weight's part of the bias forgotten", "c", operations="glora.bias")
def _(problem, run):
    return run(with_inputs(problem, c=np.zeros_like(problem.inputs["c"])))
