"""Mistakes between forward and backward."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import BFLOAT16, round_to_format
from refpeft_conformance.faults import fault, wide, with_inputs


def _only_gradients(problem, run, other):
    honest = run(problem)
    if not problem.cotangents:
        return honest
    wrong = run(other)
    return honest | {"d" + n: wrong["d" + n] for n in problem.wanted if "d" + n in wrong}


@fault("residuals", "stale residuals of another call", "x", "dx", "da")
def _(problem, run):
    x = problem.inputs["x"]
    other = with_inputs(problem, x=np.roll(x.reshape(-1), 1).reshape(x.shape)) if x.size else problem
    return _only_gradients(problem, run, other)


@fault(
    "residuals",
    "residual x kept in bfloat16",
    "x",
    "dx",
    "da",
    dtypes=("float64", "float32", "float16"),
    explains=False,
)
def _(problem, run):
    return _only_gradients(problem, run, with_inputs(problem, x=round_to_format(wide(problem.inputs["x"]), BFLOAT16)))


@fault("residuals", "residual x not kept", "x", "da")
def _(problem, run):
    return _only_gradients(problem, run, with_inputs(problem, x=np.zeros_like(problem.inputs["x"])))


@fault("residuals", "base weight forgotten in backward", "weight", "dx")
def _(problem, run):
    if "weight" not in problem.inputs:
        return run(problem)
    return _only_gradients(problem, run, with_inputs(problem, weight=np.zeros_like(problem.inputs["weight"])))


@fault("residuals", "low-rank path forgotten in backward", "b", "dx", "x", "weight", operations="*.linear")
def _(problem, run):
    honest = run(problem)
    if not problem.cotangents:
        return honest
    return honest | {"dx": run(with_inputs(problem, b=np.zeros_like(problem.inputs["b"])))["dx"]}
