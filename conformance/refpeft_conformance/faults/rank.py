"""Mistakes along the rank."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_inputs


@fault("rank", "last rank dropped", "a", "b", "[r]")
def _(problem, run):
    return run(_without(problem, -1))


@fault("rank", "first rank dropped", "a", "b", "[r]")
def _(problem, run):
    return run(_without(problem, 0))


@fault("rank", "last rank counted twice", "a", "b", "[r]")
def _(problem, run):
    b = wide(problem.inputs["b"]).copy()
    b[:, -1:] *= 2
    return run(with_inputs(problem, b=b))


@fault(
    "rank",
    "ranks of b in reverse order",
    "a",
    "b",
    "[r]",
    equivalent={"adalora.orthogonality": "the penalty does not depend on the order of the columns"},
)
def _(problem, run):
    results = run(with_inputs(problem, b=problem.inputs["b"][:, ::-1].copy()))
    return results | ({"db": results["db"][:, ::-1]} if "db" in results else {})


@fault("rank", "last rank gets no gradient", "da", "db", "[r]")
def _(problem, run):
    results = run(problem)
    if "da" not in results:
        return results
    da, db = wide(results["da"]).copy(), wide(results["db"]).copy()
    da[-1], db[:, -1] = 0, 0
    return results | {"da": da, "db": db}


@fault("rank", "a untrained", "da")
def _(problem, run):
    results = run(problem)
    return results | ({"da": np.zeros_like(results["da"])} if "da" in results else {})


@fault("rank", "gradient to a from the input without its base", "da", "db", "dx")
def _(problem, run):
    """b taken for its own sign when da is formed."""
    return only("da", run(with_inputs(problem, b=np.sign(wide(problem.inputs["b"])))), run(problem))


def _without(problem, index: int):
    b = wide(problem.inputs["b"]).copy()
    b[:, index] = 0
    return with_inputs(problem, b=b)
