"""Mistakes with elements of the weight that are trained one by one."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide
from refpeft_conformance.faults.shards import moved


@fault("structure", "values replace the elements", "values", "places")
def _(problem, run):
    i = {n: wide(a) for n, a in problem.inputs.items() if n in ("weight", "values", "a", "b")}
    places = problem.inputs["places"]
    delta = np.zeros(i["weight"].size)
    delta[places] = i["values"] - i["weight"].reshape(-1)[places]
    delta = delta.reshape(i["weight"].shape)
    if "b" in i:
        delta = delta + problem.attributes["scaling"] * i["b"] @ i["a"]
    return moved(problem, run, ("values", "b") if "b" in i else ("values",), delta)


@fault("structure", "gradient to the values in another order", "dvalues", "places")
def _(problem, run):
    results = run(problem)
    return only("dvalues", {n: np.roll(results[n], 1) for n in ("dvalues",) if n in results}, results)
