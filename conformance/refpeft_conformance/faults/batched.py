"""Mistakes with several adapters in one batch."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only

_HERE = {"operations": "lora.batched"}


@fault("batched", "first sequence's adapter for all", "adapter", **_HERE)
def _(problem, run):
    adapter = problem.inputs["adapter"]
    return run(problem.replace(inputs=problem.inputs | {"adapter": np.broadcast_to(adapter[:1], adapter.shape).copy()}))


@fault("batched", "first adapter's scaling for all", "scaling", "adapter", **_HERE)
def _(problem, run):
    scaling = problem.inputs["scaling"]
    return run(problem.replace(inputs=problem.inputs | {"scaling": np.broadcast_to(scaling[:1], scaling.shape).copy()}))


@fault("batched", "sequences sorted by adapter and not put back", "adapter", **_HERE)
def _(problem, run):
    """As where a kernel groups them, and writes in the order of the groups."""
    results, order = run(problem), np.argsort(problem.inputs["adapter"], kind="stable")
    return results | {"y": results["y"][order]}


@fault("batched", "the last sequence's gradient only", "da", "adapter", **_HERE)
def _(problem, run):
    """dA is assigned where it should be added."""
    if not problem.cotangents:
        return run(problem)
    adapter, dy = problem.inputs["adapter"], problem.cotangents["dy"]
    last = np.array([k not in adapter[p + 1 :] for p, k in enumerate(adapter)], bool)
    spared = np.where(last[:, None, None], dy, np.zeros_like(dy))
    return only("da", run(problem.replace(cotangents={"dy": spared})), run(problem))
