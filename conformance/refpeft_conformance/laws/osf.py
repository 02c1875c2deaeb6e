"""Laws of OSF."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import base_law, equal, law, merged_layer, without

base_law("osf.linear", "s")


@law("osf.merge", "a zero s leaves the weight")
def _(subject, problem, observed):
    equal("zero s", subject.run(without(problem, "s"))["merged"], problem.inputs["weight"], observed)


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
    equal("y", subject.run(whole)["y"], subject.run(without(problem, "high_u", "high_v"))["y"], observed)


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
