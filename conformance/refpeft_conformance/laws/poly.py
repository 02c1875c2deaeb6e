"""Laws of Poly."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import agree, base_law, equal, law

base_law("poly.linear", "b")


@law("poly.linear", "the order of the skills is none")
def _(subject, problem, observed):
    axes = {"a": 1, "b": 1, "logits": -1, "noise": -1}
    turned = {n: np.flip(problem.inputs[n], k).copy() for n, k in axes.items() if n in problem.inputs}
    subject.hold(problem.replace(inputs=problem.inputs | turned, cotangents={}), observed, gradients=False)


@law("poly.linear", "tasks that do not occur get no gradient", gradients=True)
def _(subject, problem, observed):
    absent = np.setdiff1d(np.arange(problem.dims["tasks"]), problem.inputs["task"])
    gradient = subject.run(problem)["dlogits"][absent]
    equal("logits of absent tasks", gradient, np.zeros_like(gradient), observed)


@law("poly.linear", "a sequence does not depend on the others")
def _(subject, problem, observed):
    """The batch backwards gives the outputs backwards."""
    forward = problem.replace(cotangents={})
    if not problem.inputs["task"].ndim:
        return
    turned = {n: problem.inputs[n][::-1].copy() for n in ("x", "task", "noise") if n in problem.inputs}
    back = subject.run(forward.replace(inputs=forward.inputs | turned))["y"][::-1]
    agree("backwards", subject, (forward, subject.run(forward)), (forward, {"y": back}), {"y": "y"}, observed)
