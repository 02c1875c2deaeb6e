"""Mistakes with token ids."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only


@fault("indexing", "ids off by one", "ids", "[v]")
def _(problem, run):
    return run(problem.replace(inputs=problem.inputs | {"ids": (problem.inputs["ids"] + 1) % problem.dims["v"]}))


def _overwrites(gradient: str):
    @fault("indexing", f"repeated ids overwrite in {gradient}", "ids", gradient)
    def _(problem, run):
        """Only the last position of each token counts, as where rows are assigned instead of added."""
        if not problem.cotangents:
            return run(problem)
        ids = problem.inputs["ids"].reshape(-1)
        last = np.zeros(ids.shape, bool)
        last[[int(np.flatnonzero(ids == t)[-1]) for t in np.unique(ids)]] = True
        dy = problem.cotangents["dy"].reshape(len(ids), problem.dims["d"]) * last[:, None].astype(
            problem.cotangents["dy"].dtype
        )
        return only(
            gradient, run(problem.replace(cotangents={"dy": dy.reshape(problem.cotangents["dy"].shape)})), run(problem)
        )


for _gradient in ("dweight", "da", "dtrained"):
    _overwrites(_gradient)


@fault("indexing", "base row of the first token for all", "ids", "weight")
def _(problem, run):
    ids = problem.inputs["ids"]
    weight = problem.inputs["weight"]
    if not ids.size:
        return run(problem)
    return run(
        problem.replace(
            inputs=problem.inputs | {"weight": np.broadcast_to(weight[ids.reshape(-1)[0]], weight.shape).copy()}
        )
    )
