"""Mistakes with Kronecker products."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_inputs


def _shuffle(first: int, second: int) -> np.ndarray:
    """Where (second, first) order finds what (first, second) order holds."""
    return np.arange(first * second).reshape(first, second).T.reshape(-1)


@fault("kronecker", "Kronecker factors swapped", "w1", "[p]", "[q]", operations="lokr*")
def _(problem, run):
    """W2 (x) W1: rows and columns of the update in the other factor's order, those of the weight where they were."""
    o, p, q = (problem.dims[n] for n in ("o", "p", "q"))
    if "x" not in problem.inputs:
        rows, columns = _shuffle(p, o // p), _shuffle(q, problem.dims["i"] // q)
        moved = problem.inputs["weight"][np.ix_(np.argsort(rows), np.argsort(columns))]
        merged = run(with_inputs(problem, weight=moved))["merged"]
        return run(problem) | {"merged": merged[np.ix_(rows, columns)]}
    rows = _shuffle(p, o // p)
    back = np.argsort(rows)
    changed = {n: problem.inputs[n][back] for n in ("weight", "bias") if n in problem.inputs}
    y = run(with_inputs(problem, **changed))["y"]
    return run(problem) | {"y": y[:, rows] if y.ndim == 4 and "kh" in problem.dims else y[..., rows]}


@fault("kronecker", "w1 transposed when square", "w1", operations="lokr*")
def _(problem, run):
    w1 = problem.inputs["w1"]
    return run(with_inputs(problem, w1=w1.T.copy())) if w1.shape[0] == w1.shape[1] else run(problem)


@fault("kronecker", "dw1 is the mean over its block", "dw1", operations="lokr*")
def _(problem, run):
    results = run(problem)
    size = problem.inputs["weight"].size // max(1, problem.inputs["w1"].size)
    return results | ({"dw1": wide(results["dw1"]) / max(1, size)} if "dw1" in results else {})


@fault("kronecker", "blocks of the first row only reach dw2", "dw1", "w2_a", operations="lokr*")
def _(problem, run):
    """The sum over copies of W2 stops after one row of blocks."""
    w1 = problem.inputs["w1"].copy()
    w1[1:] = 0
    return only("dw2_a", run(with_inputs(problem, w1=w1)), run(problem))


@fault("kronecker", "core's two ranks swapped", "core", operations="lokr_core.*")
def _(problem, run):
    return run(with_inputs(problem, core=problem.inputs["core"].swapaxes(0, 1).copy()))
