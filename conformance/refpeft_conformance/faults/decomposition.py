"""Mistakes with a weight that is split into lengths and directions."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs
from refpeft_conformance.faults.convolution import convolved

_BOTH = "d[ov]*ra.*"
"""DoRA and DVoRA."""


def _matrix(problem, name: str) -> np.ndarray:
    """A kernel's filters as rows."""
    return wide(problem.inputs[name]).reshape(len(problem.inputs[name]), -1)


def _directed(problem) -> np.ndarray:
    i = {n: _matrix(problem, n) for n in ("weight", "a", "b")}
    left, right = (wide(problem.inputs.get(n, np.ones(1)))[:, None] for n in ("lambda_b", "lambda_d"))
    return i["weight"] + problem.attributes.get("scaling", 1.0) * ((left * i["b"]) @ (right * i["a"]))


def _length(matrix, axis: int = 1) -> np.ndarray:
    return np.sqrt(np.sum(matrix**2, axis=axis))


def _normed_by(problem, run, other):
    """Divided by ``other`` where the row norms are due."""
    right = _length(_directed(problem))
    sound = np.isfinite(other) & (other > 0) & (right > 0)
    factor = np.where(sound, right / np.where(sound, other, 1.0), 1.0)
    return run(with_inputs(problem, magnitude=wide(problem.inputs["magnitude"]) * factor))


@fault("decomposition", "the norm of the columns when square", operations=_BOTH)
def _(problem, run):
    v = _directed(problem)
    return _normed_by(problem, run, _length(v, axis=0)) if v.shape[0] == v.shape[1] else run(problem)


@fault("decomposition", "the norm of the whole matrix", operations=_BOTH)
def _(problem, run):
    v = _directed(problem)
    return _normed_by(problem, run, np.full(v.shape[0], np.sqrt(np.sum(v**2))))


@fault("decomposition", "the norm of the base weight alone", operations=_BOTH)
def _(problem, run):
    return _normed_by(problem, run, _length(_matrix(problem, "weight")))


@fault("decomposition", "scaling missing in the norm", "scaling=", operations=_BOTH)
def _(problem, run):
    return _normed_by(problem, run, _length(_directed(with_attributes(problem, scaling=1.0))))


@fault("decomposition", "the squared norm", operations=_BOTH)
def _(problem, run):
    return _normed_by(problem, run, _length(_directed(problem)) ** 2)


@fault("decomposition", "the norm of absolute values", operations=_BOTH)
def _(problem, run):
    return _normed_by(problem, run, np.sum(np.abs(_directed(problem)), axis=1))


@fault("decomposition", "the other norm in the backward pass", "norm=", operations=_BOTH)
def _(problem, run):
    """Detached for full, or full for detached: gradients only."""
    other = {"detached": "full", "full": "detached"}[problem.attributes["norm"]]
    return run(with_attributes(problem, norm=other))


@fault("decomposition", "the magnitude applied to the bias", "bias", operations=_BOTH)
def _(problem, run):
    if "bias" not in problem.inputs:
        return run(problem)
    length = _length(_directed(problem))
    g = np.where(length > 0, wide(problem.inputs["magnitude"]) / np.where(length > 0, length, 1.0), 0.0)
    return run(with_inputs(problem, bias=g * wide(problem.inputs["bias"])))


@fault("decomposition", "the base layer counted twice", "x", "y", operations=_BOTH)
def _(problem, run):
    """g for g - 1 on the base path."""
    results, (x, weight) = run(problem), (wide(problem.inputs[n]) for n in ("x", "weight"))
    base = convolved(problem, weight) if "kh" in problem.dims else x @ weight.T
    return results | {"y": wide(results["y"]) + base}


@fault("decomposition", "the norm of each place of the kernel", "[kh]", "magnitude", operations="dora.conv2d")
def _(problem, run):
    """Over the channels alone, as the axis of a linear layer's norm gives it."""
    v = _directed(problem).reshape(problem.inputs["weight"].shape)
    length = _length(v)[:, None]
    magnitude = wide(problem.inputs["magnitude"])
    kernel = np.where(length > 0, v / np.where(length > 0, length, 1.0), 0.0) * magnitude[:, None, None, None]
    start = {"b": np.zeros_like(problem.inputs["b"]), "magnitude": _length(kernel.reshape(len(kernel), -1))}
    return run(with_inputs(problem, weight=kernel, **start))


@fault("decomposition", "a zero row divided by its norm", "norm=", operations=_BOTH)
def _(problem, run):
    """0 / 0 where the direction is not defined."""
    results = run(problem)
    name = "y" if "y" in results else "merged"
    rows = _length(_directed(problem)) == 0
    changed = wide(results[name]).copy()
    if name == "y":
        changed[(slice(None), rows) if "kh" in problem.dims else (..., rows)] = np.nan
    else:
        changed[rows] = np.nan
    return results | {name: changed}
