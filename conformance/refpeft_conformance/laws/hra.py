"""Laws of HRA."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, merged_layer
from refpeft_conformance.laws._convolution import base_of, merged_alone
from refpeft_conformance.laws.rotation import keeps_angles
from refpeft_conformance.strategies import is_exact

keeps_angles("hra.merge")
merged_alone("hra.conv2d", "hra.merge")


@law("hra.linear", "a pair of equal reflections leaves the base layer", needs=("nn.linear",))
def _(subject, problem, observed):
    """H H = I: how training begins at the base model."""
    if problem.attributes["variant"] != "chain" or problem.dims["i"] < 2:
        return
    twice = np.repeat(problem.inputs["u"][:, :1], 2, axis=1)
    adapted = problem.replace(inputs=problem.inputs | {"u": twice}, cotangents={})
    arrays = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
    plain = Problem.of("nn.linear", arrays, {}, {}, problem.dtype)
    agree("pair", subject, (adapted, subject.run(adapted)), (plain, subject.run(plain)), {"y": "y"}, observed)


@law("hra.conv2d", "a pair of equal reflections leaves the base layer", regime="exact", needs=("lora.conv2d",))
def _(subject, problem, observed):
    """The same of filters, bit for bit where nothing rounds."""
    if problem.attributes["variant"] != "chain":
        return
    twice = np.repeat(problem.inputs["u"][:, :1], 2, axis=1)
    adapted = problem.replace(inputs=problem.inputs | {"u": twice}, cotangents={})
    if is_exact(adapted, subject.precision(problem.dtype)):
        equal("pair", subject.run(adapted)["y"], subject.run(base_of(adapted))["y"], observed)


@law("hra.merge", "the reflections in reverse give the weight back", regime="exact")
def _(subject, problem, observed):
    """A reflection undoes itself, bit for bit where nothing rounds; with Gram-Schmidt the order does not matter."""
    merged, u = subject.run(problem.replace(cotangents={}))["merged"], problem.inputs["u"]
    undo = u[:, ::-1] if problem.attributes["variant"] == "chain" else u
    back = problem.replace(inputs={"weight": merged, "u": undo}, cotangents={})
    if is_exact(back, subject.precision(problem.dtype)):
        equal("undone", subject.run(back)["merged"], problem.inputs["weight"], observed)


@law("hra.linear", "the length of a vector has no effect", regime="exact")
def _(subject, problem, observed):
    """u doubled gives the same y, bit for bit."""
    doubled = problem.replace(inputs=problem.inputs | {"u": problem.inputs["u"] * problem.inputs["u"].dtype.type(2)})
    equal("doubled", subject.run(doubled)["y"], subject.run(problem)["y"], observed)


@law(
    "hra.merge",
    "the merged layer computes what the adapted layer does",
    regime="exact",
    needs=("nn.linear", "hra.linear"),
)
def _(subject, problem, observed):
    """On an input of small integers."""
    merged_layer(subject, problem, "hra.linear", observed)
