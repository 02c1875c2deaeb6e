"""Laws of VeLoRA."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law


def _lora(problem):
    arrays = {n: a for n, a in problem.inputs.items() if n != "v"}
    attributes = {"scaling": problem.attributes["scaling"]}
    return Problem.of("lora.linear", arrays, attributes, problem.cotangents, problem.dtype)


@law("velora.linear", "the forward is LoRA's", regime="exact", needs=("lora.linear",))
def _(subject, problem, observed):
    """Bit for bit: only the backward pass approximates."""
    forward = problem.replace(cotangents={})
    equal("forward", subject.run(forward)["y"], subject.run(_lora(forward))["y"], observed)


@law(
    "velora.linear",
    "only the gradient to a differs from LoRA's",
    regime="exact",
    gradients=True,
    needs=("lora.linear",),
)
def _(subject, problem, observed):
    """And v gets none."""
    results, plain = subject.run(problem), subject.run(_lora(problem))
    for name in plain.keys() - {"y", "da"}:
        equal(name, results[name], plain[name], observed)
    equal("dv", results["dv"], np.zeros_like(results["dv"]), observed)


@law("velora.linear", "what v spans is kept whole", regime="exact", gradients=True, needs=("lora.linear",))
def _(subject, problem, observed):
    """With v a unit vector and x zero beside it, nothing is lost: then the gradient to a is LoRA's too."""
    width = problem.inputs["v"].shape[0]
    v, x = np.zeros_like(problem.inputs["v"]), problem.inputs["x"].copy()
    v[0] = 1
    x[..., np.arange(x.shape[-1]) % width != 0] = 0
    inputs, attributes = problem.inputs | {"v": v, "x": x}, problem.attributes | {"restore": 1.0}
    along = problem.replace(inputs=inputs, attributes=attributes)
    equal("da", subject.run(along)["da"], subject.run(_lora(along))["da"], observed)
