"""Laws of (IA)^3."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, merged_layer


def _ones(problem):
    return problem.replace(inputs=problem.inputs | {"scale": np.ones_like(problem.inputs["scale"])}, cotangents={})


@law("ia3.linear", "a scale of ones leaves the base layer", needs=("nn.linear",))
def _(subject, problem, observed):
    start = _ones(problem)
    arrays = {n: a for n, a in problem.inputs.items() if n != "scale"}
    base = Problem.of("nn.linear", arrays, {}, {}, problem.dtype)
    agree("ones", subject, (start, subject.run(start)), (base, subject.run(base)), {"y": "y"}, observed)


@law("ia3.linear", "powers of two scale the outputs bit for bit", regime="exact", needs=("nn.linear",))
def _(subject, problem, observed):
    """On the side of the outputs l = 2 doubles y, bias included; on that of the inputs it doubles what W gives."""
    twos = problem.inputs | {"scale": 2 * np.ones_like(problem.inputs["scale"])}
    arrays = {n: a for n, a in problem.inputs.items() if n != "scale"}
    if problem.attributes["side"] == "input":
        arrays["x"] = 2 * arrays["x"]
    base = subject.run(Problem.of("nn.linear", arrays, {}, {}, problem.dtype))["y"]
    doubled = subject.run(problem.replace(inputs=twos, cotangents={}))["y"]
    equal("doubled", doubled, base if problem.attributes["side"] == "input" else 2 * base, observed)


@law("ia3.merge", "a scale of ones leaves the weight")
def _(subject, problem, observed):
    equal("ones", subject.run(_ones(problem))["merged"], problem.inputs["weight"], observed)


@law(
    "ia3.merge",
    "the merged layer computes what the adapted layer does",
    regime="exact",
    needs=("nn.linear", "ia3.linear"),
)
def _(subject, problem, observed):
    merged_layer(subject, problem, "ia3.linear", observed)
