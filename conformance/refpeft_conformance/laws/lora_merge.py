"""Laws of merging an adapter into its base and taking it out again."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law
from refpeft_conformance.strategies import is_exact


@law("lora.delta", "a zero b gives a zero delta")
def _(subject, problem, observed):
    zero = problem.replace(inputs=problem.inputs | {"b": np.zeros_like(problem.inputs["b"])}, cotangents={})
    equal("zero b", subject.run(zero)["delta"], np.zeros((problem.dims["o"], problem.dims["i"])), observed)


@law("lora.delta", "twice the scaling gives twice the delta", regime="exact")
def _(subject, problem, observed):
    once = problem.replace(cotangents={})
    twice = once.replace(attributes=once.attributes | {"scaling": 2 * once.attributes["scaling"]})
    equal(
        "twice the scaling",
        subject.run(twice)["delta"].astype(float),
        2.0 * subject.run(once)["delta"].astype(float),
        observed,
    )


@law("lora.merge", "a zero b leaves the weight")
def _(subject, problem, observed):
    zero = problem.replace(inputs=problem.inputs | {"b": np.zeros_like(problem.inputs["b"])}, cotangents={})
    equal("zero b", subject.run(zero)["merged"], problem.inputs["weight"], observed)


@law(
    "lora.merge",
    "the merged layer computes what the adapted layer does",
    regime="exact",
    needs=("nn.linear", "lora.linear"),
)
def _(subject, problem, observed):
    """On an input of small integers for which both sides are exact, they are equal."""
    dtype = problem.inputs["weight"].dtype
    x = (np.arange(2 * problem.dims["i"]).reshape(2, -1) % 3 - 1).astype(dtype)
    adapted = Problem.of("lora.linear", problem.inputs | {"x": x}, problem.attributes, {}, problem.dtype)
    merged = Problem.of("nn.linear", {"x": x, "weight": subject.run(problem)["merged"]}, {}, {}, problem.dtype)
    precision = subject.precision(problem.dtype)
    if is_exact(adapted, precision) and is_exact(merged, precision):
        equal("merged layer", subject.run(merged)["y"], subject.run(adapted)["y"], observed)


@law("lora.unmerge", "unmerging undoes merging", regime="exact", needs=("lora.merge",))
def _(subject, problem, observed):
    """Where merging is exact nothing is lost."""
    merged = problem.inputs["merged"]
    adapters = {n: problem.inputs[n] for n in ("a", "b")}
    back = Problem.of(
        "lora.merge", adapters | {"weight": subject.run(problem)["weight"]}, problem.attributes, {}, problem.dtype
    )
    equal("merged again", subject.run(back)["merged"], merged, observed)
