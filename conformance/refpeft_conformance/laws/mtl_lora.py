"""Laws of LoRA that tasks share."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, base_law, equal, law

base_law("mtl_lora.linear", "b")

_SHARED = ("x", "weight", "a", "bias")


@law("mtl_lora.linear", "equal weights average the up-projections", regime="exact", needs=("lora.linear",))
def _(subject, problem, observed):
    """With Lambda the identity it is LoRA with the mean of the B_j; here they are all the first of them."""
    inputs, (k, _, r) = problem.inputs, problem.inputs["b"].shape
    if k not in (1, 2, 4):
        return
    full = problem.attributes["form"] == "full"
    one = np.eye(r) if full else np.ones((1, r))
    same = {
        "b": np.broadcast_to(inputs["b"][:1], inputs["b"].shape).copy(),
        "core": np.broadcast_to(one, inputs["core"].shape).astype(inputs["core"].dtype),
        "mixing": np.zeros_like(inputs["mixing"]),
    }
    shared = problem.replace(inputs=inputs | same, cotangents={})
    arrays = {n: inputs[n] for n in _SHARED if n in inputs} | {"b": inputs["b"][0].copy()}
    lora = Problem.of("lora.linear", arrays, {"scaling": problem.attributes["scaling"]}, {}, problem.dtype)
    equal("mean", subject.run(shared)["y"], subject.run(lora)["y"], observed)


@law("mtl_lora.linear", "a diagonal is a full matrix with zeros beside it")
def _(subject, problem, observed):
    core = problem.inputs["core"]
    if problem.attributes["form"] == "full":
        core = np.diagonal(core, axis1=-2, axis2=-1)[:, None, :].copy()
    whole = core * np.eye(core.shape[-1], dtype=core.dtype)
    one, two = (
        problem.replace(
            inputs=problem.inputs | {"core": c}, attributes=problem.attributes | {"form": form}, cotangents={}
        )
        for c, form in ((core, "diagonal"), (whole, "full"))
    )
    agree("diagonal", subject, (one, subject.run(one)), (two, subject.run(two)), {"y": "y"}, observed)


@law("mtl_lora.linear", "a task without a sequence gets no gradient", gradients=True)
def _(subject, problem, observed):
    """All sequences are the first task's."""
    first = problem.replace(inputs=problem.inputs | {"task": np.zeros_like(problem.inputs["task"])})
    results = subject.run(first)
    for name in ("dcore", "dmixing"):
        equal(name, results[name][1:], np.zeros_like(results[name][1:]), observed)
