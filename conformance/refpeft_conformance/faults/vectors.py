"""Mistakes with vectors between and behind frozen matrices."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_inputs

_FAMILIES = "*v[eo]ra.*"
"""VeRA, PVeRA and DVoRA."""


@fault("vectors", "lambda_b and lambda_d swapped when as long", "lambda_d", "lambda_b", operations="vera.*")
def _(problem, run):
    d, b = problem.inputs["lambda_d"], problem.inputs["lambda_b"]
    if d.shape != b.shape:
        return run(problem)
    results = run(with_inputs(problem, lambda_d=b.copy(), lambda_b=d.copy()))
    swapped = {"dlambda_d": "dlambda_b", "dlambda_b": "dlambda_d"}
    return results | {n: results[m] for n, m in swapped.items() if m in results}


@fault("vectors", "lambda_d left out", "lambda_d", operations=_FAMILIES)
def _(problem, run):
    return run(with_inputs(problem, lambda_d=np.ones_like(problem.inputs["lambda_d"])))


@fault("vectors", "lambda_b left out", "lambda_b", operations=_FAMILIES)
def _(problem, run):
    return run(with_inputs(problem, lambda_b=np.ones_like(problem.inputs["lambda_b"])))


@fault("vectors", "lambda_b applied to the bias", "lambda_b", "bias", operations=_FAMILIES)
def _(problem, run):
    if "bias" not in problem.inputs:
        return run(problem)
    return run(with_inputs(problem, bias=wide(problem.inputs["bias"]) * wide(problem.inputs["lambda_b"])))


@fault("vectors", "gradient to lambda_d without lambda_b", "dlambda_d", "lambda_b", operations=_FAMILIES)
def _(problem, run):
    return only("dlambda_d", run(with_inputs(problem, lambda_b=np.ones_like(problem.inputs["lambda_b"]))), run(problem))


@fault("vectors", "gradient to lambda_b without lambda_d", "dlambda_b", "lambda_d", operations=_FAMILIES)
def _(problem, run):
    return only("dlambda_b", run(with_inputs(problem, lambda_d=np.ones_like(problem.inputs["lambda_d"]))), run(problem))


@fault("vectors", "the logarithm taken of the deviation", "noise", operations="pvera.linear")
def _(problem, run):
    """exp(v) for exp(v / 2): the second half of lambda_d doubled."""
    changed = wide(problem.inputs["lambda_d"]).copy()
    changed[len(changed) // 2 :] *= 2
    return run(with_inputs(problem, lambda_d=changed))


@fault("vectors", "means and variances swapped", "noise", operations="pvera.linear")
def _(problem, run):
    changed = {n: np.roll(problem.inputs[n], len(problem.inputs[n]) // 2, axis=0) for n in ("a", "lambda_d")}
    results = run(with_inputs(problem, **changed))
    half = len(problem.inputs["a"]) // 2
    return results | {n: np.roll(results[n], half, axis=0) for n in ("da", "dlambda_d") if n in results}


@fault("vectors", "noise ignored", "noise", operations="pvera.linear")
def _(problem, run):
    if "noise" not in problem.inputs:
        return run(problem)
    return run(with_inputs(problem, noise=np.zeros_like(problem.inputs["noise"])))


@fault("vectors", "noise of the first row for all", "noise", "x", operations="pvera.linear")
def _(problem, run):
    noise = problem.inputs.get("noise")
    if noise is None or noise.ndim < 2 or not noise.size:
        return run(problem)
    return run(with_inputs(problem, noise=np.broadcast_to(noise[:1], noise.shape).copy()))
