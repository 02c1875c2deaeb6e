"""Laws of OSF."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, merged_layer


@law("osf.linear", "zero singular values leave the frozen part", needs=("nn.linear",))
def _(subject, problem, observed):
    without = problem.replace(inputs=problem.inputs | {"s": np.zeros_like(problem.inputs["s"])}, cotangents={})
    arrays = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
    plain = Problem.of("nn.linear", arrays, {}, {}, problem.dtype)
    agree("zero s", subject, (without, subject.run(without)), (plain, subject.run(plain)), {"y": "y"}, observed)


@law("osf.merge", "zero singular values leave the weight")
def _(subject, problem, observed):
    zero = problem.replace(inputs=problem.inputs | {"s": np.zeros_like(problem.inputs["s"])}, cotangents={})
    equal("zero s", subject.run(zero)["merged"], problem.inputs["weight"], observed)


@law(
    "osf.merge",
    "the merged layer computes what the adapted layer does",
    regime="exact",
    needs=("nn.linear", "osf.linear"),
)
def _(subject, problem, observed):
    """Without frozen directions, on which the forward does not depend."""
    weight = problem.inputs["weight"]
    merged_layer(subject, problem, "osf.linear", observed, high_u=weight[:, :0], high_v=weight[:0])


@law("osf.linear", "the forward does not depend on the frozen directions", regime="exact")
def _(subject, problem, observed):
    """They say where gradients may go, and nothing else."""
    whole = problem.replace(cotangents={})
    other = {n: np.zeros_like(problem.inputs[n]) for n in ("high_u", "high_v")}
    without = whole.replace(inputs=whole.inputs | other)
    equal("y", subject.run(whole)["y"], subject.run(without)["y"], observed)


@law("osf.linear", "gradients have nothing along the frozen directions", gradients=True)
def _(subject, problem, observed):
    """With axes for directions: these rows of dU and columns of dV are zero exactly, the others are as without projection."""
    o, h, i = (problem.dims[n] for n in ("o", "h", "i"))
    if h > min(o, i):
        return
    dtype = problem.inputs["weight"].dtype
    axes = {"high_u": np.eye(o, h).astype(dtype), "high_v": np.eye(h, i).astype(dtype)}
    along = problem.replace(inputs=problem.inputs | axes)
    free = problem.replace(inputs=problem.inputs | {n: np.zeros_like(a) for n, a in axes.items()})
    results, plain = subject.run(along), subject.run(free)
    equal("dU along H", results["du"][:h], np.zeros_like(results["du"][:h]), observed)
    equal("dV along G", results["dv"][:, :h], np.zeros_like(results["dv"][:, :h]), observed)
    equal("dU beside H", results["du"][h:], plain["du"][h:], observed)
    equal("dV beside G", results["dv"][:, h:], plain["dv"][:, h:], observed)
    for name in ("dhigh_u", "dhigh_v"):
        equal(name, results[name], np.zeros_like(results[name]), observed)
