"""Elements that a kernel forgets or reads beyond."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_inputs


@fault("coverage", "last element unwritten")
def _(problem, run):
    results = run(problem)
    return {n: _with_last(a, 0) for n, a in results.items()}


@fault("coverage", "last element is NaN", "y")
def _(problem, run):
    results = run(problem)
    return {n: _with_last(a, np.nan) if a.dtype.kind not in "iub" else a for n, a in results.items()}


@fault("coverage", "tail beyond a multiple of eight unwritten", "y", "[*n]")
def _(problem, run):
    results = run(problem)
    y = wide(results["y"]).copy()
    y[..., y.shape[-1] // 8 * 8 :] = 0
    return results | {"y": y}


@fault("coverage", "contraction stops at a multiple of eight", "x", "[i]", "weight", operations="*.linear")
def _(problem, run):
    x = wide(problem.inputs["x"]).copy()
    x[..., x.shape[-1] // 8 * 8 :] = 0
    return run(with_inputs(problem, x=x))


@fault("coverage", "first element of x read twice", "x", "y", operations="*.linear")
def _(problem, run):
    x = wide(problem.inputs["x"]).copy()
    if x.size:
        x[..., 0] *= 2
    return run(with_inputs(problem, x=x))


@fault("coverage", "largest element clipped", "y")
def _(problem, run):
    results = run(problem)
    y = wide(results["y"])
    return results | {"y": np.clip(y, None, np.max(np.abs(y), initial=0.0) / 2)}


def _with_last(array, value):
    changed = np.array(array)
    if changed.size:
        changed.reshape(-1)[-1] = value
    return changed
