"""Mistakes with what belongs to a task: its matrix, its weights, and how they average up-projections."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs

_MTL = {"operations": "mtl_lora.linear"}


def _changed(name: str, **changes) -> None:
    """Inputs in another form, each made of the input and the problem."""

    @fault("tasks", name, "mixing", **_MTL)
    def _(problem, run):
        return run(with_inputs(problem, **{n: change(wide(problem.inputs[n])) for n, change in changes.items()}))


def _identity(core):
    return np.broadcast_to(np.eye(core.shape[-1]) if core.shape[-2] > 1 else np.ones(core.shape[-1]), core.shape).copy()


_changed("the task's matrix left out", core=_identity)
_changed("the task's matrix transposed", core=lambda c: np.swapaxes(c, -1, -2).copy() if c.shape[-2] > 1 else c)
_changed("up-projections averaged alike", mixing=np.zeros_like)
_changed("up-projections in reverse order", mixing=lambda m: m[:, ::-1].copy())
_changed("weights of the first task for all", mixing=lambda m: np.broadcast_to(m[:1], m.shape).copy())


@fault("tasks", "the matrix of the next task", "mixing", **_MTL)
def _(problem, run):
    following = (problem.inputs["task"] + 1) % problem.dims["tasks"]
    return run(problem.replace(inputs=problem.inputs | {"task": following}))


@fault("tasks", "weights multiplied by the sharpness", "sharpness=", **_MTL)
def _(problem, run):
    return run(with_attributes(problem, sharpness=1 / problem.attributes["sharpness"]))


@fault("tasks", "weights not divided by the sharpness", "sharpness=", **_MTL)
def _(problem, run):
    return run(with_attributes(problem, sharpness=1.0))


@fault("tasks", "exponentials not divided by their sum", "sharpness=", **_MTL)
def _(problem, run):
    results, base = run(problem), wide(run(with_inputs(problem, b=np.zeros_like(problem.inputs["b"])))["y"])
    sums = np.exp(wide(problem.inputs["mixing"]) / problem.attributes["sharpness"]).sum(axis=-1)
    factor = sums[problem.inputs["task"]][..., None, None]
    return results | {"y": base + factor * (wide(results["y"]) - base)}


@fault("tasks", "gradient to the weights without the sharpness", "dmixing", **_MTL)
def _(problem, run):
    results = run(problem)
    if "dmixing" not in results:
        return results
    return results | {"dmixing": wide(results["dmixing"]) * problem.attributes["sharpness"]}
