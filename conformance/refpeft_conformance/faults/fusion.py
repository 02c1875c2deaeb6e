"""Mistakes with attention over adapters."""

from __future__ import annotations

import math

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_attributes, with_inputs

_FUSION = "adapter.fusion"


def _weighted(name: str, weigh):
    """Weights that are not the softmax of the scores (*n, k) over the adapters."""

    @fault("fusion", name, "adapted", operations=_FUSION)
    def _(problem, run):
        i = {n: wide(a) for n, a in problem.inputs.items()}
        q = i["x"] @ i["query"].T + i.get("query_bias", 0.0)
        scores = np.einsum("...kd,...d->...k", i["adapted"] @ i["key"].T, q) / problem.attributes["temperature"]
        values = i["adapted"] @ i["value"].T
        return run(problem) | {"y": np.einsum("...k,...kd->...d", weigh(scores), values) + i.get("residual", 0.0)}


def _softmax(scores, axis):
    e = np.exp(scores - scores.max(axis=axis, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=axis, keepdims=True)


_weighted("softmax over the batch", lambda s: _softmax(s, 0) if s.ndim > 1 and s.shape[0] else _softmax(s, -1))
_weighted("weights that are not normalised", lambda s: np.exp(s))
_weighted("the best adapter alone", lambda s: (s == s.max(axis=-1, keepdims=True)).astype(float))


@fault("fusion", "scores divided by the root of the width", "temperature=", operations=_FUSION)
def _(problem, run):
    """As in a transformer's attention; not here."""
    return run(with_attributes(problem, temperature=problem.attributes["temperature"] * math.sqrt(problem.dims["e"])))


@fault("fusion", "temperature forgotten", "temperature=", operations=_FUSION)
def _(problem, run):
    return run(with_attributes(problem, temperature=1.0))


@fault("fusion", "query and key change places", "query", "key", operations=_FUSION)
def _(problem, run):
    return run(with_inputs(problem, query=problem.inputs["key"], key=problem.inputs["query"]))


@fault("fusion", "no gradient through the weights", "dadapted", "query", operations=_FUSION)
def _(problem, run):
    """The scores taken as constants."""
    results = run(problem)
    return results | {n: np.zeros_like(results[n]) for n in ("dx", "dquery", "dkey") if n in results}


@fault(
    "fusion",
    "the gradient to the query from scores of another temperature",
    "dquery",
    "temperature=",
    operations=_FUSION,
)
def _(problem, run):
    """1/T forgotten on the way back."""
    results = run(problem)
    if "dquery" not in results:
        return results
    return only("dquery", {"dquery": wide(results["dquery"]) * problem.attributes["temperature"]}, results)
