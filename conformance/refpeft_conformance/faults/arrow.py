"""Mistakes with adapters that tokens find by prototypes."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_attributes
from refpeft_conformance.faults.routing import softmax

_HERE = {"operations": "arrow.linear"}


def _routed(name: str, gates):
    """The output with gates (*n, k) that ``gates(z, chosen, temperature)`` makes of the projections z."""

    @fault("arrow", name, "prototypes", **_HERE)
    def _(problem, run):
        i, a = {n: wide(array) for n, array in problem.inputs.items()}, problem.attributes
        g = gates(i["x"] @ i["prototypes"].T, a["chosen"], a["temperature"])
        updates = np.einsum("...i,kri,kor->...ko", i["x"], i["a"], i["b"])
        y = i["x"] @ i["weight"].T + i.get("bias", 0.0) + a["scaling"] * np.einsum("...k,...ko->...o", g, updates)
        return run(problem) | {"y": y}


def _top(z, chosen):
    """Whether each is among the largest of its row."""
    order = np.argsort(-z, axis=-1, kind="stable")[..., :chosen]
    left = np.zeros(z.shape, bool)
    np.put_along_axis(left, order, True, axis=-1)
    return left


def _among(scores, left):
    """A softmax over what is left."""
    return softmax(np.where(left, scores, -np.inf))


_routed("products with their sign, not their magnitude", lambda z, chosen, t: _among(z / t, _top(z, chosen)))
_routed("the largest chosen by sign, weighed by magnitude", lambda z, chosen, t: _among(np.abs(z) / t, _top(z, chosen)))
_routed("the smallest scores chosen", lambda z, chosen, t: _among(np.abs(z) / t, _top(-np.abs(z), chosen)))
_routed(
    "softmax over all adapters, and then the largest",
    lambda z, chosen, t: softmax(np.abs(z) / t) * _top(np.abs(z), chosen),
)
_routed("equal gates for what is chosen", lambda z, chosen, t: _top(np.abs(z), chosen) / chosen)


@fault("arrow", "scores at temperature one", "temperature=", "prototypes", **_HERE)
def _(problem, run):
    return run(with_attributes(problem, temperature=1.0))


@fault("arrow", "one adapter less for each token", "chosen=", "prototypes", **_HERE)
def _(problem, run):
    return run(with_attributes(problem, chosen=max(1, problem.attributes["chosen"] - 1)))


@fault("arrow", "no gradient to the prototypes", "dprototypes", **_HERE)
def _(problem, run):
    results = run(problem)
    if "dprototypes" not in results:
        return results
    return results | {"dprototypes": np.zeros_like(results["dprototypes"])}


@fault("arrow", "gradient to the prototypes without the temperature", "dprototypes", "temperature=", **_HERE)
def _(problem, run):
    results = run(problem)
    if "dprototypes" not in results:
        return results
    return results | {"dprototypes": wide(results["dprototypes"]) * problem.attributes["temperature"]}


@fault("arrow", "gradient to x past the gates", "dx", "prototypes", **_HERE)
def _(problem, run):
    """As where the gates are computed without gradient."""
    results = run(problem)
    if "dx" not in results:
        return results
    i, s = {n: wide(array) for n, array in problem.inputs.items()}, problem.attributes
    z = i["x"] @ i["prototypes"].T
    g = _among(np.abs(z) / s["temperature"], _top(np.abs(z), s["chosen"]))
    dy = wide(problem.cotangents["dy"])
    updates = np.einsum("kor,kri->koi", i["b"], i["a"])
    return results | {"dx": dy @ i["weight"] + s["scaling"] * np.einsum("...o,...k,koi->...i", dy, g, updates)}
