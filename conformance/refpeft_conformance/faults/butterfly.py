"""Mistakes with products of butterfly factors."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_inputs


@fault("butterfly", "the rotations transposed", "q", "factors=")
def _(problem, run):
    """R of -K."""
    return run(with_inputs(problem, q=np.swapaxes(problem.inputs["q"], -1, -2)))


@fault("butterfly", "the rotations not transposed on the way back to x", "q", "factors=", "dx")
def _(problem, run):
    return only("dx", run(with_inputs(problem, q=np.swapaxes(problem.inputs["q"], -1, -2))), run(problem))


@fault("butterfly", "K not halved", "q", "factors=")
def _(problem, run):
    """Q - Qᵀ in the place of (Q - Qᵀ) / 2."""
    return run(with_inputs(problem, q=2 * wide(problem.inputs["q"])))


@fault("butterfly", "the factors in reverse", "dq", "factors=")
def _(problem, run):
    """B_0 B_1 ... B_(f-1): each level with the rotations of the other end; with one factor, its blocks in reverse."""
    axis = 0 if problem.attributes["factors"] > 1 else 1
    results = run(with_inputs(problem, q=np.flip(problem.inputs["q"], axis)))
    return results | ({"dq": np.flip(results["dq"], axis)} if "dq" in results else {})


@fault("butterfly", "the permutation forgotten or inverted", "q", "factors=")
def _(problem, run):
    """The result under the permutation of the last level, once more: what a factor P R P or R P gives with P = I."""
    i = problem.inputs
    block, run_length = problem.attributes["block"], 2 ** (problem.attributes["factors"] - 1)
    if run_length == 1:
        return run(problem)
    name = "x" if "x" in i and "kh" not in problem.dims else "weight"
    halves = i[name].reshape(-1, 2, run_length, block // 2)
    return run(with_inputs(problem, **{name: np.swapaxes(halves, 1, 2).reshape(i[name].shape)}))


@fault("butterfly", "the scale on the bias too", "scale", "bias", "factors=")
def _(problem, run):
    if "bias" not in problem.inputs:
        return run(problem)
    results = run(problem)
    more = (wide(problem.inputs["scale"]) - 1) * wide(problem.inputs["bias"])
    return results | {"y": wide(results["y"]) + (more[:, None, None] if "kh" in problem.dims else more)}


@fault("butterfly", "the scales of the outputs forgotten", "scale", "factors=")
def _(problem, run):
    return run(with_inputs(problem, scale=np.ones_like(problem.inputs["scale"])))


@fault("butterfly", "the gradient to Q from one triangle", "dq", "factors=")
def _(problem, run):
    """dK left above the diagonal."""
    results = run(problem)
    return results | ({"dq": 2 * np.triu(wide(results["dq"]), 1)} if "dq" in results else {})
