"""Mistakes with block-diagonal factors."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, with_inputs


@fault("blocks", "blocks of a in reverse order", "blocks_a=", operations="bdlora.*")
def _(problem, run):
    return _reordered(problem, run, "a", lambda parts: parts[::-1])


@fault("blocks", "blocks of b in reverse order", "blocks_b=", operations="bdlora.*")
def _(problem, run):
    return _reordered(problem, run, "b", lambda parts: parts[::-1])


@fault("blocks", "the first block of a for all", "blocks_a=", operations="bdlora.*")
def _(problem, run):
    return _reordered(problem, run, "a", lambda parts: np.broadcast_to(parts[:1], parts.shape))


@fault("blocks", "rows of a dealt to the blocks in turn", "blocks_a=", operations="bdlora.*")
def _(problem, run):
    """Row j in block j modulo ka."""
    blocks, a = problem.attributes["blocks_a"], problem.inputs["a"]
    order = np.arange(len(a)).reshape(-1, blocks).T.reshape(-1)
    return run(with_inputs(problem, a=a[order].copy()))


@fault("blocks", "the last block of b gets no gradient", "blocks_b=", "db", operations="bdlora.*")
def _(problem, run):
    results = run(problem)
    if "db" not in results or problem.attributes["blocks_b"] == 1:
        return results
    db = results["db"].copy()
    db[-len(db) // problem.attributes["blocks_b"] :] = 0
    return results | {"db": db}


def _reordered(problem, run, name, order):
    blocks, array = problem.attributes["blocks_" + name], problem.inputs[name]
    parts = array.reshape(blocks, -1, array.shape[1])
    return run(with_inputs(problem, **{name: order(parts).reshape(array.shape).copy()}))
