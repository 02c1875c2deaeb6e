"""Laws of VeRA and PVeRA."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, update_laws

update_laws("vera", zero="lambda_b")


@law("vera.linear", "vectors of ones leave plain LoRA", regime="exact", needs=("lora.linear",))
def _(subject, problem, observed):
    """With lambda_d = lambda_b = 1 the layer is LoRA with the same A and B, scaled by one."""
    ones = {n: np.ones_like(problem.inputs[n]) for n in ("lambda_d", "lambda_b")}
    plain = problem.replace(inputs=problem.inputs | ones, cotangents={})
    arrays = {n: a for n, a in problem.inputs.items() if n not in ones}
    attributes = {"scaling": 1.0, "keep": problem.attributes["keep"]}
    lora = Problem.of("lora.linear", arrays, attributes, {}, problem.dtype)
    equal("ones", subject.run(plain)["y"], subject.run(lora)["y"], observed)


@law("pvera.linear", "a zero lambda_b leaves the base layer", needs=("nn.linear",))
def _(subject, problem, observed):
    zero = {"lambda_b": np.zeros_like(problem.inputs["lambda_b"])}
    adapted = problem.replace(inputs=problem.inputs | zero, cotangents={})
    arrays = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
    plain = Problem.of("nn.linear", arrays, {}, {}, problem.dtype)
    agree("zero", subject, (adapted, subject.run(adapted)), (plain, subject.run(plain)), {"y": "y"}, observed)


@law("pvera.linear", "without noise it is the VeRA layer of its means", regime="exact", needs=("vera.linear",))
def _(subject, problem, observed):
    """The first halves of A and lambda_d."""
    r = problem.inputs["b"].shape[1]
    arrays = {n: a for n, a in problem.inputs.items() if n != "noise"}
    quiet = problem.replace(inputs=arrays, cotangents={})
    halves = {n: arrays[n][:r] for n in ("a", "lambda_d")}
    mean = Problem.of("vera.linear", arrays | halves, problem.attributes, {}, problem.dtype)
    equal("mean", subject.run(quiet)["y"], subject.run(mean)["y"], observed)


@law("pvera.linear", "zero noise is no noise", regime="exact")
def _(subject, problem, observed):
    arrays = {n: a for n, a in problem.inputs.items() if n != "noise"}
    batch, r = arrays["x"].shape[:-1], arrays["b"].shape[1]
    zero = np.zeros((*batch, r), arrays["x"].dtype)
    first = subject.run(problem.replace(inputs=arrays | {"noise": zero}, cotangents={}))["y"]
    equal("zero noise", first, subject.run(problem.replace(inputs=arrays, cotangents={}))["y"], observed)
