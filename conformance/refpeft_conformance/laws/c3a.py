"""Laws of C3A."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, update_laws

update_laws("c3a", zero="kernel")


@law("c3a.merge", "every block is circulant", regime="exact")
def _(subject, problem, observed):
    """Moving a block of delta one row down and one column right leaves it as it is."""
    base = problem.inputs["weight"] * 0
    merged = subject.run(problem.replace(inputs=problem.inputs | {"weight": base}, cotangents={}))["merged"]
    p, q, b = problem.inputs["kernel"].shape
    blocks = merged.reshape(p, b, q, b)
    equal("moved block", np.roll(blocks, (1, 1), axis=(1, 3)), blocks, observed)


def _directly(subject, problem, name: str, observed) -> None:
    """The same problem by sums: within both budgets."""
    direct = Problem.of(name, problem.inputs, problem.attributes, problem.cotangents, problem.dtype)
    pairs = {r: r for r in problem.result_specs}
    agree("by sums", subject, (problem, subject.run(problem)), (direct, subject.run(direct)), pairs, observed)


@law("c3a.linear_fft", "transforms give what sums do", gradients=True, needs=("c3a.linear",))
def _(subject, problem, observed):
    _directly(subject, problem, "c3a.linear", observed)


@law("c3a.merge_fft", "transforms give what sums do", gradients=True, needs=("c3a.merge",))
def _(subject, problem, observed):
    _directly(subject, problem, "c3a.merge", observed)


@law("c3a.merge_fft", "a zero kernel leaves the weight")
def _(subject, problem, observed):
    zero = problem.replace(inputs=problem.inputs | {"kernel": np.zeros_like(problem.inputs["kernel"])}, cotangents={})
    equal("zero kernel", subject.run(zero)["merged"], problem.inputs["weight"], observed)
