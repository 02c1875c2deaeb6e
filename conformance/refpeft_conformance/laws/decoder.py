"""Laws of a decoder's parts."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import doubled, equal, law
from refpeft_conformance.verdict import Violation


def changed(problem, attributes=None, **arrays):
    """The problem's forward with some inputs and attributes replaced."""
    return problem.replace(
        inputs=problem.inputs | arrays, attributes=problem.attributes | (attributes or {}), cotangents={}
    )


@law("nn.rms_norm", "a zero vector gives zero")
def _(subject, problem, observed):
    y = subject.run(changed(problem, x=np.zeros_like(problem.inputs["x"])))["y"]
    equal("zero vector", y, np.zeros_like(y), observed)


@law("nn.rms_norm", "twice the gain is twice the output bit for bit")
def _(subject, problem, observed):
    x = problem.inputs["x"]
    gain = problem.inputs.get("weight", np.ones(problem.dims["d"], x.dtype))
    doubled(*(subject.run(changed(problem, weight=gain * x.dtype.type(k)))["y"] for k in (1, 2)), observed)


@law("nn.rms_norm", "twice the vector with four times eps is the same bit for bit")
def _(subject, problem, observed):
    """The root grows with the vector."""
    doubled = {"eps": 4 * problem.attributes["eps"]}
    once = subject.run(changed(problem))["y"]
    twice = subject.run(changed(problem, doubled, x=problem.inputs["x"] * problem.inputs["x"].dtype.type(2)))["y"]
    equal("doubled", twice, once, observed)


@law("nn.rms_norm", "each vector of a batch stands alone", regime="exact")
def _(subject, problem, observed):
    vectors = problem.inputs["x"].reshape(-1, problem.dims["d"])
    whole = subject.run(changed(problem))["y"].reshape(vectors.shape)
    for j in range(min(len(vectors), 4)):
        equal(f"vector {j} alone", subject.run(changed(problem, x=vectors[j]))["y"], whole[j], observed)


@law("nn.rope", "an angle of zero changes nothing")
def _(subject, problem, observed):
    x, cos = problem.inputs["x"], problem.inputs["cos"]
    still = changed(problem, cos=np.ones_like(cos), sin=np.zeros_like(cos))
    equal("angle of zero", subject.run(still)["y"], x, observed)


@law("nn.rope", "a quarter turn maps x1, x2 to -x2, x1")
def _(subject, problem, observed):
    x, cos = problem.inputs["x"], problem.inputs["cos"]
    y = subject.run(changed(problem, {"layout": "neighbours"}, cos=np.zeros_like(cos), sin=np.ones_like(cos)))["y"]
    equal("first of each pair", y[..., 0::2], -x[..., 1::2], observed)
    equal("second of each pair", y[..., 1::2], x[..., 0::2], observed)


@law("nn.rope", "neighbours are halves in another order", regime="exact")
def _(subject, problem, observed):
    x = problem.inputs["x"]
    halves = np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)
    one = subject.run(changed(problem, {"layout": "neighbours"}))["y"]
    two = subject.run(changed(problem, {"layout": "halves"}, x=halves))["y"]
    equal("reordered", np.concatenate([one[..., 0::2], one[..., 1::2]], axis=-1), two, observed)


@law("nn.swiglu", "a closed gate gives zero")
def _(subject, problem, observed):
    y = subject.run(changed(problem, gate=np.zeros_like(problem.inputs["gate"])))["y"]
    equal("closed gate", y, np.zeros_like(y), observed)


@law("nn.swiglu", "the output is linear in the ungated branch: minus up is minus y bit for bit")
def _(subject, problem, observed):
    y = subject.run(changed(problem))["y"]
    equal("negated", subject.run(changed(problem, up=-problem.inputs["up"]))["y"], -y, observed)


@law("nn.embedding", "the output is rows of the table, bit for bit")
def _(subject, problem, observed):
    equal("rows", subject.run(changed(problem))["y"], problem.inputs["weight"][problem.inputs["ids"]], observed)


@law("nn.embedding", "tokens that do not occur get no gradient", gradients=True)
def _(subject, problem, observed):
    absent = np.setdiff1d(np.arange(problem.dims["v"]), problem.inputs["ids"])
    rows = subject.run(problem)["dweight"][absent]
    equal("rows of absent tokens", rows, np.zeros_like(rows), observed)


@law("nn.cross_entropy", "tokens that the mask leaves out have no influence", gradients=True)
def _(subject, problem, observed):
    """Other logits and another target for the first of them: equal loss, and no gradient."""
    logits, target = problem.inputs["logits"], problem.inputs["target"]
    if not target.size:
        return
    mask = np.array(problem.inputs.get("mask", np.ones(target.shape, bool)))
    mask.reshape(-1)[0] = False
    other, aim = logits.copy(), target.copy()
    other.reshape(-1, problem.dims["v"])[0] = 3
    aim.reshape(-1)[0] = problem.dims["v"] - 1
    first, second = (
        subject.run(problem.replace(inputs=problem.inputs | {"logits": a, "target": t, "mask": mask}))
        for a, t in ((logits, target), (other, aim))
    )
    equal("another token left out", second["loss"], first["loss"], observed)
    left_out = first["dlogits"].reshape(-1, problem.dims["v"])[0]
    equal("gradient of a token left out", left_out, np.zeros_like(left_out), observed)


@law("nn.cross_entropy", "the gradient sums to zero over the vocabulary", gradients=True)
def _(subject, problem, observed):
    """A constant added to all logits of a token changes nothing; within the elements' budgets."""
    (found,) = subject.compare(problem, subject.run(problem), ["dlogits"])
    total = np.abs(np.sum(found.got.astype(np.float64), axis=-1))
    room = np.sum(found.golden.budget, axis=-1) + np.abs(np.sum(found.golden.value, axis=-1))
    observed.elements += total.size
    if np.any(total > room):
        raise Violation(f"the gradient sums to {np.max(total - room):.3g} more than its budgets allow")


@law("nn.cross_entropy", "without a token that counts the loss is zero")
def _(subject, problem, observed):
    mask = np.zeros(problem.inputs["target"].shape, bool)
    equal("nothing counts", subject.run(changed(problem, mask=mask))["loss"], np.zeros(()), observed)


@law("nn.lm_loss", "whole, it is the linear layer and the loss of its logits", needs=("nn.linear", "nn.cross_entropy"))
def _(subject, problem, observed):
    """Within the budget of the whole and that of the loss on the subject's own logits together."""
    i = problem.inputs
    logits = subject.run(Problem.of("nn.linear", {"x": i["x"], "weight": i["weight"]}, {}))["y"]
    given = {n: i[n] for n in ("target", "mask") if n in i} | {"logits": logits}
    parts = Problem.of("nn.cross_entropy", given, {})
    (whole,) = subject.compare(problem, subject.run(problem), ["loss"])
    (own,) = subject.compare(parts, subject.run(parts), ["loss"])
    apart = abs(float(whole.got) - float(own.got))
    (y,) = subject.compare(Problem.of("nn.linear", {"x": i["x"], "weight": i["weight"]}, {}), {"y": logits})
    room = float(whole.golden.budget + own.golden.budget) + 2 * float(np.max(y.golden.budget, initial=0.0))
    observed.elements += 1
    if apart > room:
        raise Violation(f"the whole gives {float(whole.got):.9g}, its parts {float(own.got):.9g}")


@law("nn.lm_loss", "tokens that the mask leaves out have no influence", gradients=True)
def _(subject, problem, observed):
    """Another x and another target for the first of them: equal loss and head's gradient, and none to x."""
    x, target = problem.inputs["x"], problem.inputs["target"]
    if not target.size:
        return
    mask = np.array(problem.inputs.get("mask", np.ones(target.shape, bool)))
    mask.reshape(-1)[0] = False
    other, aim = x.copy(), target.copy()
    other.reshape(-1, x.shape[-1])[0] = 0
    aim.reshape(-1)[0] = problem.dims["v"] - 1
    first, second = (
        subject.run(problem.replace(inputs=problem.inputs | {"x": a, "target": t, "mask": mask}))
        for a, t in ((x, target), (other, aim))
    )
    equal("another token left out", second["loss"], first["loss"], observed)
    left_out = first["dx"].reshape(-1, x.shape[-1])[0]
    equal("gradient of a token left out", left_out, np.zeros_like(left_out), observed)


@law(
    "nn.qkv", "each output is the linear layer of its own matrix", regime="exact", gradients=True, needs=("nn.linear",)
)
def _(subject, problem, observed):
    """Gradients to matrices and biases too, and the three to x add up to one."""
    whole, dx = subject.run(problem), 0.0
    for name in "qkv":
        given = {
            n: problem.inputs.get(m) for n, m in (("x", "x"), ("weight", f"{name}_weight"), ("bias", f"{name}_bias"))
        }
        part = subject.run(Problem.of("nn.linear", given, {}, {"dy": problem.cotangents[f"d{name}"]}, problem.dtype))
        equal(name, whole[name], part["y"], observed)
        for n in ("weight", "bias"):
            if given[n] is not None:
                equal(f"d{name}_{n}", whole[f"d{name}_{n}"], part[f"d{n}"], observed)
        dx = dx + part["dx"].astype(np.float64)
    equal("dx", whole["dx"].astype(np.float64), dx, observed)


@law("nn.qkv", "with the identity for a matrix, its output is x bit for bit")
def _(subject, problem, observed):
    x, size = problem.inputs["x"], problem.dims["i"]
    factors = {"q": 1.0, "k": -2.0, "v": 4.0}
    matrices = {f"{n}_weight": (f * np.eye(size)).astype(x.dtype) for n, f in factors.items()}
    results = subject.run(problem.replace(inputs={"x": x} | matrices, cotangents={}))
    for name, factor in factors.items():
        equal(name, results[name], x * x.dtype.type(factor), observed)
