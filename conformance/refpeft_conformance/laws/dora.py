"""Laws of DoRA."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, merged_layer
from refpeft_conformance.verdict import Violation


@law("dora.linear", "training begins at the base layer", needs=("nn.linear",))
def _(subject, problem, observed):
    """B zero and the magnitude the row norms of the weight."""
    adapted, plain = at_start(problem, problem.inputs["weight"]), _base(problem)
    agree("start", subject, (adapted, subject.run(adapted)), (plain, subject.run(plain)), {"y": "y"}, observed)


@law("dora.linear", "training begins at the base layer exactly", regime="exact", needs=("nn.linear",))
def _(subject, problem, observed):
    """Where the row norms are powers of two: V of the drawn problem in the place of W."""
    adapted = at_start(problem, directed(problem))
    equal("start", subject.run(adapted)["y"], subject.run(_base(adapted))["y"], observed)


@law("dora.linear", "the magnitude scales y without its bias", regime="exact")
@law("dora.conv2d", "the magnitude scales y without its bias", regime="exact")
def _(subject, problem, observed):
    """With a zero magnitude the bias is left, where nothing is dropped."""
    arrays = {n: a for n, a in problem.inputs.items() if n != "mask"}
    arrays["magnitude"] = np.zeros_like(arrays["magnitude"])
    y = subject.run(problem.replace(inputs=arrays, cotangents={}))["y"]
    bias = arrays.get("bias", np.zeros_like(arrays["magnitude"]))
    bias = bias[:, None, None] if problem.operation.name == "dora.conv2d" else bias
    equal("zero magnitude", y, np.broadcast_to(bias, y.shape), observed)


@law("dora.merge", "the rows of the merged weight have the magnitudes as their norms")
def _(subject, problem, observed):
    """| ||M_j|| - |m_j| | is at most the norm of the row's budgets, and the few units that the check itself rounds."""
    (merged,) = subject.compare(problem, subject.run(problem), ["merged"])
    lengths = np.sqrt(np.sum(merged.got.astype(np.float64) ** 2, axis=1))
    magnitude = np.abs(problem.inputs["magnitude"].astype(np.float64))
    there = np.any(merged.golden.value != 0, axis=1)
    rounding = (merged.got.shape[1] + 4) * 2.0**-52 * magnitude
    room = np.sqrt(np.sum(merged.golden.budget**2, axis=1)) + rounding
    observed.elements += int(there.sum())
    wrong = there & ~(np.abs(lengths - magnitude) <= room)
    if np.any(wrong):
        j = int(np.flatnonzero(wrong)[0])
        raise Violation(f"row {j} has norm {lengths[j]:g} but magnitude {magnitude[j]:g}", {"merged": merged.got})


@law("dora.merge", "a direction has no length", regime="exact")
def _(subject, problem, observed):
    """W and B doubled leave the merged weight as it was, bit for bit."""
    doubled = {n: problem.inputs[n] * problem.inputs[n].dtype.type(2) for n in ("weight", "b")}
    other = problem.replace(inputs=problem.inputs | doubled, cotangents={})
    equal("W and B doubled", subject.run(other)["merged"], subject.run(problem)["merged"], observed)


@law("dora.merge", "the full gradient is orthogonal to the direction", gradients=True)
def _(subject, problem, observed):
    """M does not change along V, so that <dW_j, V_j> = 0: the projection of the paper's equation 6."""
    full = problem.replace(attributes=problem.attributes | {"norm": "full"})
    (dweight,) = subject.compare(full, subject.run(full), ["dweight"])
    v = directed(full).astype(np.float64)
    along = np.abs(np.sum(dweight.got.astype(np.float64) * v, axis=1))
    rounding = (v.shape[1] + 4) * 2.0**-52 * np.sum(np.abs(dweight.golden.value * v), axis=1)
    exact = np.abs(np.sum(dweight.golden.value * v, axis=1))
    observed.elements += along.size
    if np.any(~(along <= np.sum(dweight.golden.budget * np.abs(v), axis=1) + exact + rounding)):
        raise Violation("the gradient of a row of W has a part along the row of V", {"dweight": dweight.got})


@law("dora.merge", "a zero row stays zero and passes no gradient", gradients=True)
def _(subject, problem, observed):
    """It has no direction; nothing divides by its norm."""
    zero = {n: _without_first_row(problem.inputs[n]) for n in ("weight", "b")}
    results = subject.run(problem.replace(inputs=problem.inputs | zero))
    for name in ("merged", "dweight", "db", "dmagnitude"):
        equal(f"{name} of a zero row", results[name][:1], np.zeros_like(results[name][:1]), observed)


@law("dora.merge", "the merged layer computes what the adapted layer does", needs=("nn.linear", "dora.linear"))
def _(subject, problem, observed):
    merged_layer(subject, problem, "dora.linear", observed)


def at_start(problem, weight):
    """B zero, and the magnitude as `refpeft.ops.dora.init` has it, rounded to the problem's dtype."""
    inputs = {n: a for n, a in problem.inputs.items() if n != "mask"}
    lengths = np.sqrt(np.sum(weight.astype(np.float64).reshape(len(weight), -1) ** 2, axis=1))
    start = {"weight": weight, "b": np.zeros_like(inputs["b"]), "magnitude": store(lengths, as_format(problem.dtype))}
    return problem.replace(inputs=inputs | start, cotangents={})


def _base(problem):
    inputs = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
    return Problem.of("nn.linear", inputs, {}, {}, problem.dtype)


def directed(problem):
    """V, kernels as matrices."""
    w, a, b = (x.astype(np.float64).reshape(len(x), -1) for x in (problem.inputs[n] for n in ("weight", "a", "b")))
    return store(w + problem.attributes["scaling"] * (b @ a), as_format(problem.dtype))


def _without_first_row(array):
    changed = array.copy()
    changed[:1] = 0
    return changed
