"""Laws of Lily."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, base_law, equal, law

base_law("lily.linear", "b")


@law("lily.linear", "with one B for all it is LoRA", needs=("lora.linear",))
def _(subject, problem, observed):
    """Whatever the router says, shares of equal matrices are that matrix."""
    b = problem.inputs["b"]
    alike = problem.replace(inputs=problem.inputs | {"b": np.broadcast_to(b[:1], b.shape).copy()}, cotangents={})
    arrays = {n: problem.inputs[n] for n in ("x", "weight", "a", "bias") if n in problem.inputs}
    lora = Problem.of("lora.linear", arrays | {"b": b[0].T.copy()}, problem.attributes, {}, problem.dtype)
    agree("one B", subject, (alike, subject.run(alike)), (lora, subject.run(lora)), {"y": "y"}, observed)


@law("lily.linear", "the order of the B is none")
def _(subject, problem, observed):
    turned = {n: problem.inputs[n][::-1] for n in ("b", "router")}
    subject.hold(problem.replace(inputs=problem.inputs | turned, cotangents={}), observed, gradients=False)


@law("lily.linear", "tokens in another order have their outputs in that order")
def _(subject, problem, observed):
    """They are averaged over, wherever they stand."""
    if problem.inputs["x"].ndim < 2:
        return
    turned = problem.replace(inputs=problem.inputs | {"x": problem.inputs["x"][::-1].copy()}, cotangents={})
    first, second = subject.run(problem.replace(cotangents={})), subject.run(turned)
    back = {"y": second["y"][::-1]}
    agree(
        "turned",
        subject,
        (problem.replace(cotangents={}), first),
        (problem.replace(cotangents={}), back),
        {"y": "y"},
        observed,
    )


@law("lily.linear", "without tokens nothing is learnt", gradients=True)
def _(subject, problem, observed):
    """Gradients of an empty batch are zero, not the mean of nothing."""
    shape = (0, *problem.inputs["x"].shape[1:]) if problem.inputs["x"].ndim > 1 else (0, problem.dims["i"])
    x = np.zeros(shape, problem.inputs["x"].dtype)
    dy = np.zeros((*shape[:-1], problem.dims["o"]), x.dtype)
    results = subject.run(problem.replace(inputs=problem.inputs | {"x": x}, cotangents={"dy": dy}))
    for name in ("da", "db", "drouter"):
        equal(name, results[name], np.zeros_like(results[name]), observed)
