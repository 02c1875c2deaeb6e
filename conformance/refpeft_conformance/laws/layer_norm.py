"""Laws of layer normalisation."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import doubled, equal, law
from refpeft_conformance.verdict import Violation


@law("nn.layer_norm", "a zero vector gives the bias bit for bit")
def _(subject, problem, observed):
    at_zero = problem.replace(inputs=problem.inputs | {"x": np.zeros_like(problem.inputs["x"])}, cotangents={})
    bias = problem.inputs.get("bias", np.zeros(problem.dims["d"], problem.inputs["x"].dtype))
    y = subject.run(at_zero)["y"]
    equal("zero vector", y, np.broadcast_to(bias, y.shape), observed)


@law("nn.layer_norm", "twice the gain and the bias is twice the output bit for bit")
def _(subject, problem, observed):
    inputs = dict(problem.inputs)
    inputs.setdefault("weight", np.ones(problem.dims["d"], inputs["x"].dtype))
    once = problem.replace(inputs=inputs, cotangents={})
    twice = once.replace(inputs=inputs | {n: 2 * inputs[n] for n in ("weight", "bias") if n in inputs})
    doubled(subject.run(once)["y"], subject.run(twice)["y"], observed)


@law("nn.layer_norm", "the gradient to x sums to zero over each vector", gradients=True)
def _(subject, problem, observed):
    """A constant added to a vector changes nothing, so that no gradient points that way; within the elements' budgets."""
    (found,) = subject.compare(problem, subject.run(problem), ["dx"])
    total = np.abs(np.sum(found.got.astype(np.float64), axis=-1))
    room = np.sum(found.golden.budget, axis=-1) + np.abs(np.sum(found.golden.value, axis=-1))
    observed.elements += total.size
    if np.any(total > room):
        raise Violation(f"the gradient to x sums to {np.max(total - room):.3g} more than its budgets allow")


@law("nn.layer_norm", "each vector of a batch stands alone", regime="exact")
def _(subject, problem, observed):
    vectors = problem.inputs["x"].reshape(-1, problem.dims["d"])
    whole = subject.run(problem.replace(cotangents={}))["y"].reshape(vectors.shape)
    for j in range(min(len(vectors), 4)):
        alone = problem.replace(inputs=problem.inputs | {"x": vectors[j]}, cotangents={})
        equal(f"vector {j} alone", subject.run(alone)["y"], whole[j], observed)
