"""Laws of (IA)^3."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, merged_layer
from refpeft_conformance.strategies import is_exact


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
@law("ia3.conv2d_merge", "a scale of ones leaves the weight")
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


@law("ia3.conv2d", "the merged kernel needs no scale", regime="exact", needs=("ia3.conv2d_merge",))
def _(subject, problem, observed):
    """Scales of ones beside the kernel of the merge, and beside a bias that is scaled on the side of the outputs."""
    adapted, inputs = problem.replace(cotangents={}), problem.inputs
    own = {n: problem.attributes[n] for n in ("side", "groups")}
    parts = {n: inputs[n] for n in ("weight", "scale")}
    merging = Problem.of("ia3.conv2d_merge", parts, own, {}, problem.dtype)
    merged = {"weight": subject.run(merging)["merged"], "scale": np.ones_like(inputs["scale"])}
    if "bias" in inputs and problem.attributes["side"] == "output":
        merged["bias"] = inputs["bias"] * inputs["scale"]
    plain = adapted.replace(inputs=inputs | merged)
    if all(is_exact(p, subject.precision(problem.dtype)) for p in (adapted, merging, plain)):
        equal("merged kernel", subject.run(plain)["y"], subject.run(adapted)["y"], observed)


@law("ia3.conv2d", "powers of two scale the outputs bit for bit", regime="exact")
def _(subject, problem, observed):
    """On the side of the outputs l doubled doubles y, bias included; on that of the inputs an image doubled does the same."""
    adapted = problem.replace(cotangents={})
    twice = {n: problem.inputs[n] * problem.inputs[n].dtype.type(2) for n in ("x", "scale")}
    doubled = subject.run(adapted.replace(inputs=problem.inputs | {"scale": twice["scale"]}))["y"]
    if problem.attributes["side"] == "input":
        equal(
            "doubled", doubled, subject.run(adapted.replace(inputs=problem.inputs | {"x": twice["x"]}))["y"], observed
        )
    else:
        equal("doubled", doubled, 2 * subject.run(adapted)["y"], observed)
