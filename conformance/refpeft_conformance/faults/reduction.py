"""Mistakes in sums over the batch."""

from __future__ import annotations

import math

import numpy as np

from refpeft.operation import Operation
from refpeft_conformance.faults import fault, only, wide


def _rows(problem) -> int:
    stars = [d[1:] for d in problem.operation.signature.dims if d.startswith("*")]
    return math.prod(problem.dims[stars[0]]) if stars else 1


def _mean(gradient: str):
    @fault("reduction", f"{gradient} is the mean over the batch", gradient, "[*n]")
    def _(problem, run):
        results = run(problem)
        return results | ({gradient: wide(results[gradient]) / max(1, _rows(problem))} if gradient in results else {})


for _gradient in ("dweight", "da", "db", "dbias", "dlora_bias"):
    _mean(_gradient)


def _gives_rows(operation: Operation) -> bool:
    """Whether an output has a row for each of the batch, and with it the cotangent."""
    return any(output.star for output in operation.outputs)


def _missing_row(gradient: str):
    @fault("reduction", f"{gradient} misses the last row of the batch", gradient, "[*n]", where=_gives_rows)
    def _(problem, run):
        if not problem.cotangents or _rows(problem) == 0:
            return run(problem)
        cotangents = {n: _without_last(a) for n, a in problem.cotangents.items()}
        return only(gradient, run(problem.replace(cotangents=cotangents)), run(problem))


for _gradient in ("dweight", "da", "db"):
    _missing_row(_gradient)


@fault("reduction", "only the first batch entry is used for all", "x", "y", "[*n]")
def _(problem, run):
    x = problem.inputs["x"]
    if x.ndim < 2 or not x.shape[0]:
        return run(problem)
    results = run(problem)
    return results | {"y": np.broadcast_to(results["y"][:1], results["y"].shape)}


def _without_last(cotangent):
    changed = cotangent.reshape(-1, cotangent.shape[-1]).copy()
    changed[-1:] = 0
    return changed.reshape(cotangent.shape)
