"""Laws of LoRA on a linear layer."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import agree, equal, law
from refpeft_conformance.verdict import Violation


@law("lora.linear", "a zero b leaves the base layer", needs=("nn.linear",))
def _(subject, problem, observed):
    inputs = {n: a for n, a in problem.inputs.items() if n != "lora_bias"}
    adapted = problem.replace(inputs=inputs | {"b": np.zeros_like(problem.inputs["b"])})
    base = _base(problem)
    agree("zero b", subject, (adapted, subject.run(adapted)), (base, subject.run(base)), {"y": "y"}, observed)


@law("lora.linear", "a zero b leaves the base layer exactly", regime="exact", needs=("nn.linear",))
def _(subject, problem, observed):
    inputs = {n: a for n, a in problem.inputs.items() if n != "lora_bias"}
    adapted = problem.replace(inputs=inputs | {"b": np.zeros_like(problem.inputs["b"])})
    equal("zero b", subject.run(adapted)["y"], subject.run(_base(problem))["y"], observed)


@law("lora.linear", "at initialisation only b learns", regime="exact", gradients=True)
def _(subject, problem, observed):
    """With b = 0 the gradient to a is zero: dA = s (dy B)ᵀ x (Hu et al. 2021, section 4.1)."""
    at_start = problem.replace(inputs=problem.inputs | {"b": np.zeros_like(problem.inputs["b"])})
    equal("gradient to a at b = 0", subject.run(at_start)["da"], np.zeros_like(problem.inputs["a"]), observed)


@law("lora.linear", "scaling x by a power of two scales y", regime="exact")
def _(subject, problem, observed):
    linear = _without_biases(problem)
    doubled = linear.replace(inputs=linear.inputs | {"x": linear.inputs["x"] * linear.inputs["x"].dtype.type(2)})
    equal(
        "x times two", subject.run(doubled)["y"].astype(float), 2.0 * subject.run(linear)["y"].astype(float), observed
    )


@law("lora.linear", "the vjp is the adjoint of the forward", regime="exact", gradients=True)
def _(subject, problem, observed):
    """<dy, y(x)> = <dx, x> for the part of y that is linear in x; in small integers both sides are exact."""
    linear = _without_biases(problem)
    results = subject.run(linear)
    left = np.sum(linear.cotangents["dy"].astype(float) * results["y"].astype(float))
    right = np.sum(linear.inputs["x"].astype(float) * results["dx"].astype(float))
    observed.elements += 1
    if left != right:
        raise Violation(f"<dy, y(x)> = {left:g} but <dx, x> = {right:g}", results)


@law("lora.linear", "each row of a batch stands alone", regime="exact")
def _(subject, problem, observed):
    whole = subject.run(problem)["y"].reshape(-1, problem.dims["o"])
    rows = problem.inputs["x"].reshape(-1, problem.dims["i"])
    masks = problem.inputs["mask"].reshape(rows.shape) if "mask" in problem.inputs else None
    for j in range(min(len(rows), 4)):
        alone = problem.replace(inputs=problem.inputs | {"x": rows[j]} | ({} if masks is None else {"mask": masks[j]}))
        equal(f"row {j} alone", subject.run(alone)["y"], whole[j], observed)


@law("lora.linear", "two adapters of rank one add up to one of rank two")
def _(subject, problem, observed):
    """Splitting the rank splits the update: B A is the sum of its rank-one parts."""
    if problem.dims["r"] < 2:
        return
    whole = _without_biases(problem)
    zero = np.zeros_like(whole.inputs["weight"])
    parts = [
        whole.replace(
            inputs=whole.inputs
            | {"a": whole.inputs["a"][s], "b": whole.inputs["b"][:, s]}
            | ({} if first else {"weight": zero})
        )
        for first, s in ((True, slice(0, 1)), (False, slice(1, None)))
    ]
    results = [subject.run(p) for p in parts]
    golden = subject.compare(whole, subject.run(whole), ["y"])[0]
    pieces = [subject.compare(p, r, ["y"])[0] for p, r in zip(parts, results)]
    total = sum(r["y"].astype(np.float64) for r in results)
    room = (
        golden.golden.budget
        + sum(c.golden.budget for c in pieces)
        + np.abs(golden.golden.value - sum(c.golden.value for c in pieces))
    )
    observed.elements += total.size
    if np.any(np.abs(total - golden.got.astype(np.float64)) > room):
        raise Violation("rank-one parts do not add up to the whole within their budgets", results[0])


def _base(problem):
    from refpeft.problem import Problem

    inputs = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
    return Problem.of("nn.linear", inputs, {}, {}, problem.dtype)


def _without_biases(problem):
    return problem.replace(inputs={n: a for n, a in problem.inputs.items() if not n.endswith("bias")})
