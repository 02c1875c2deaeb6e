"""Laws of bottleneck adapters and of their fusion."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law


def _with(problem, **changed):
    return problem.replace(inputs=problem.inputs | changed, cotangents={})


def _zeros(problem, *names):
    return {n: np.zeros_like(problem.inputs[n]) for n in names if n in problem.inputs}


@law("adapter.bottleneck", "a zero up-projection gives the residual back bit for bit")
def _(subject, problem, observed):
    start = _with(problem, **_zeros(problem, "up", "up_bias"))
    y = subject.run(start)["y"]
    equal("zero up", y, problem.inputs.get("residual", np.zeros_like(y)), observed)


@law("adapter.bottleneck", "what the adapter adds does not depend on the residual", regime="exact")
def _(subject, problem, observed):
    """A parallel adapter meets the sublayer's output by addition only."""
    if "residual" not in problem.inputs:
        return
    alone = subject.run(_with(problem, **_zeros(problem, "residual")))["y"]
    equal("added", subject.run(problem.replace(cotangents={}))["y"], alone + problem.inputs["residual"], observed)


@law("adapter.bottleneck", "the gradient to the residual is dy bit for bit", gradients=True)
def _(subject, problem, observed):
    if "residual" in problem.inputs:
        equal("dresidual", subject.run(problem)["dresidual"], problem.cotangents["dy"], observed)


@law("adapter.bottleneck", "at a zero start only the up-projection learns", regime="exact", gradients=True)
def _(subject, problem, observed):
    """With U = 0 nothing flows down to D."""
    start = problem.replace(inputs=problem.inputs | _zeros(problem, "up"))
    equal("ddown at up = 0", subject.run(start)["ddown"], np.zeros_like(problem.inputs["down"]), observed)


@law("adapter.sublayer", "a zero up-projection leaves the norm of what was there", needs=("nn.layer_norm",))
def _(subject, problem, observed):
    """With x = 0 that is the norm of the sublayer's output."""
    start = _with(problem, **_zeros(problem, "x", "up", "up_bias"))
    arrays = {"x": problem.inputs["hidden"], "weight": problem.inputs["weight"], "bias": problem.inputs["bias"]}
    base = Problem.of("nn.layer_norm", arrays, {"eps": problem.attributes["eps"]}, {}, problem.dtype)
    agree("zero up", subject, (start, subject.run(start)), (base, subject.run(base)), {"y": "y"}, observed)


@law("adapter.fusion", "the order of the adapters does not matter")
def _(subject, problem, observed):
    here, there = problem.replace(cotangents={}), _with(problem, adapted=problem.inputs["adapted"][..., ::-1, :].copy())
    agree("order", subject, (here, subject.run(here)), (there, subject.run(there)), {"y": "y"}, observed)


@law("adapter.fusion", "copies of one adapter are that adapter", needs=("nn.linear",))
def _(subject, problem, observed):
    """The weights sum to one, whatever the scores."""
    first = problem.inputs["adapted"][..., :1, :]
    copies = _with(problem, adapted=np.broadcast_to(first, problem.inputs["adapted"].shape).copy())
    copies = copies.replace(inputs={n: a for n, a in copies.inputs.items() if n != "residual"})
    arrays = {"x": first[..., 0, :].copy(), "weight": problem.inputs["value"]}
    one = Problem.of("nn.linear", arrays, {}, {}, problem.dtype)
    agree("copies", subject, (copies, subject.run(copies)), (one, subject.run(one)), {"y": "y"}, observed)
