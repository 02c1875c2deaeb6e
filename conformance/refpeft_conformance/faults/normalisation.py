"""Mistakes with layer normalisation."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format, round_to_format
from refpeft_conformance.faults import fault, only, wide, with_inputs


def _wrong(name: str, normalise):
    """A norm whose vectors are normalised by ``normalise(x, eps)``; gain and bias as they should be."""

    @fault("normalisation", name, "eps=", "x", operations="nn.layer_norm")
    def _(problem, run):
        inputs = {n: wide(a) for n, a in problem.inputs.items()}
        normal = normalise(inputs["x"], problem.attributes["eps"])
        return run(problem) | {"y": normal * inputs.get("weight", 1.0) + inputs.get("bias", 0.0)}


def _centred(x):
    return x - x.mean(axis=-1, keepdims=True)


def _variance(x):
    return (_centred(x) ** 2).mean(axis=-1, keepdims=True)


_wrong("eps outside the root", lambda x, eps: _centred(x) / (np.sqrt(_variance(x)) + eps))
_wrong("eps forgotten", lambda x, eps: _centred(x) / np.sqrt(np.maximum(_variance(x), np.finfo(float).tiny)))
_wrong("the mean not subtracted", lambda x, eps: x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps))
_wrong(
    "the variance divided by one less",
    lambda x, eps: _centred(x) / np.sqrt(_variance(x) * x.shape[-1] / max(x.shape[-1] - 1, 1) + eps),
)


@fault("normalisation", "the variance in one pass", "eps=", "x", operations="nn.layer_norm", dtypes=("float32",))
def _(problem, run):
    """Mean of squares minus square of the mean, in float32."""
    x, eps = problem.inputs["x"].astype(np.float32), np.float32(problem.attributes["eps"])
    mean = x.mean(axis=-1, keepdims=True)
    variance = (x * x).mean(axis=-1, keepdims=True) - mean * mean
    normal = (x - mean) / np.sqrt(np.maximum(variance, np.float32(0)) + eps)
    return run(problem) | {
        "y": normal * problem.inputs.get("weight", np.float32(1)) + problem.inputs.get("bias", np.float32(0))
    }


@fault("normalisation", "a gain kept as its distance from one", "weight", "eps=", operations="nn.layer_norm")
def _(problem, run):
    """1 + weight for weight."""
    if "weight" not in problem.inputs:
        return run(problem)
    return run(with_inputs(problem, weight=1 + wide(problem.inputs["weight"])))


def _gradient(name: str, part):
    @fault("normalisation", name, "eps=", "dx", operations="nn.layer_norm")
    def _(problem, run):
        results = run(problem)
        if "dx" not in results:
            return results
        x = wide(problem.inputs["x"])
        inverse = 1 / np.sqrt(_variance(x) + problem.attributes["eps"])
        normal = _centred(x) * inverse
        g = wide(problem.cotangents["dy"]) * wide(problem.inputs.get("weight", np.ones(x.shape[-1])))
        lost = round_to_format(part(inverse, g, normal), as_format(problem.dtype))
        return only("dx", {"dx": wide(results["dx"]) + lost}, results)


_gradient("no gradient through the mean", lambda inverse, g, normal: inverse * g.mean(axis=-1, keepdims=True))
_gradient(
    "no gradient through the variance",
    lambda inverse, g, normal: inverse * normal * (g * normal).mean(axis=-1, keepdims=True),
)
