"""Mistakes with rotations that are learned through skew-symmetric matrices."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_attributes, with_inputs


@fault("rotation", "the rotation transposed", "skew")
def _(problem, run):
    """R of -K, which is Rᵀ."""
    return run(with_inputs(problem, skew=-problem.inputs["skew"]))


@fault("rotation", "the rotation not transposed on the way back to x", "skew", "dx")
def _(problem, run):
    """dx = dz R."""
    return only("dx", run(with_inputs(problem, skew=-problem.inputs["skew"])), run(problem))


@fault("rotation", "the gradient to K of the wrong sign", "dskew")
def _(problem, run):
    """Of the lower triangle for that of the upper one."""
    results = run(problem)
    return results | ({"dskew": -wide(results["dskew"])} if "dskew" in results else {})


@fault("rotation", "the gradient to K from one of its triangles", "dskew")
def _(problem, run):
    """Half of it, where the two triangles give alike."""
    results = run(problem)
    return results | ({"dskew": wide(results["dskew"]) / 2} if "dskew" in results else {})


@fault("rotation", "K halved", "skew")
def _(problem, run):
    """(K - Kᵀ) / 2 of a K that is skew already: I + K for I + 2 K, to first order."""
    return run(with_inputs(problem, skew=wide(problem.inputs["skew"]) / 2))


@fault("rotation", "the blocks in reverse", "dskew", "block=")
def _(problem, run):
    results = run(with_inputs(problem, skew=problem.inputs["skew"][..., ::-1, :]))
    return results | ({"dskew": results["dskew"][..., ::-1, :]} if "dskew" in results else {})


@fault("rotation", "the triangle of K read by columns", "dskew")
def _(problem, run):
    """The numbers of the strict upper triangle taken column by column."""
    skew = problem.inputs["skew"]
    size = (1 + int(np.sqrt(1 + 8 * skew.shape[-1]))) // 2
    rows, columns = np.triu_indices(size, 1)
    order = np.argsort(np.lexsort((rows, columns)))
    results = run(with_inputs(problem, skew=skew[..., order]))
    return results | ({"dskew": results["dskew"][..., np.argsort(order)]} if "dskew" in results else {})


@fault("rotation", "the series one term short", "terms=", "variant=")
def _(problem, run):
    return run(with_attributes(problem, terms=max(1, problem.attributes["terms"] - 1)))


@fault("rotation", "the series in place of the inverse", "terms=", "variant=")
def _(problem, run):
    """Five terms, as peft has by default."""
    return run(with_attributes(problem, variant="neumann", terms=5))
