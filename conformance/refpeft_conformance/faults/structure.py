"""Mistakes with the structure of a sparse or circulant update."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_inputs


@fault("structure", "places counted along the columns", "values", "places")
def _(problem, run):
    """Column times o plus row for row times i plus column."""
    o, i = problem.inputs["weight"].shape
    row, column = np.divmod(problem.inputs["places"], i)
    return run(with_inputs(problem, places=column * o + row))


@fault("structure", "the last place of the mask left out", "values", "places")
def _(problem, run):
    kept = problem.inputs["values"].copy()
    kept[-1:] = 0
    return run(with_inputs(problem, values=kept))


@fault("structure", "places from one on", "values", "places")
def _(problem, run):
    """As a language that counts from one would read them, the last one the first."""
    return run(with_inputs(problem, places=(problem.inputs["places"] + 1) % problem.inputs["weight"].size))


@fault("structure", "circular convolution for circular correlation", operations="c3a.*")
def _(problem, run):
    """w[(s - t) mod b] for w[(t - s) mod b]: every block transposed."""
    kernel = problem.inputs["kernel"]
    b = kernel.shape[2]
    back = (-np.arange(b)) % b if b else np.arange(0)
    results = run(with_inputs(problem, kernel=kernel[:, :, back]))
    return results | ({"dkernel": results["dkernel"][:, :, back]} if "dkernel" in results else {})


@fault("structure", "blocks read column by column", operations="c3a.*")
def _(problem, run):
    """The kernel of block (q, p) at block (p, q) where both sides have as many blocks."""
    kernel = problem.inputs["kernel"]
    if kernel.shape[0] != kernel.shape[1]:
        return run(problem)
    results = run(with_inputs(problem, kernel=kernel.transpose(1, 0, 2)))
    return results | ({"dkernel": results["dkernel"].transpose(1, 0, 2)} if "dkernel" in results else {})


@fault("structure", "divided by the block for the number of inputs", "normalised=", operations="c3a.*")
def _(problem, run):
    if not problem.attributes["normalised"]:
        return run(problem)
    times = np.float64(problem.dims["i"] / problem.dims["b"])
    if not np.log2(times).is_integer():
        return run(problem)
    return run(with_inputs(problem, kernel=(problem.inputs["kernel"].astype(np.float64) * times)))


@fault("structure", "the gradient a mean over a block for its sum", "dkernel", operations="c3a.*")
def _(problem, run):
    results = run(problem)
    mean = {"dkernel": wide(results["dkernel"]) / problem.dims["b"]} if "dkernel" in results else {}
    return only("dkernel", mean, results)
