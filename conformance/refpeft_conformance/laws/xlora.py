"""Laws of X-LoRA."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, base_law, equal, law
from refpeft_conformance.verdict import Violation


def _gated(problem, gates):
    typed = np.broadcast_to(gates, problem.inputs["gates"].shape).astype(problem.inputs["gates"].dtype)
    return problem.replace(inputs=problem.inputs | {"gates": typed}, cotangents={})


base_law("xlora.linear", "gates")


@law("xlora.linear", "one open gate is that adapter's LoRA", needs=("lora.linear",))
def _(subject, problem, observed):
    k = problem.dims["k"]
    if not k:
        return
    only = _gated(problem, np.arange(k) == k - 1)
    arrays = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
    arrays |= {n: problem.inputs[n][-1] for n in ("a", "b")}
    arrays |= {"mask": problem.inputs["mask"][..., -1, :]} if "mask" in problem.inputs else {}
    lora = Problem.of("lora.linear", arrays, problem.attributes, {}, problem.dtype)
    agree("one gate", subject, (only, subject.run(only)), (lora, subject.run(lora)), {"y": "y"}, observed)


@law("xlora.linear", "the order of the adapters is none")
def _(subject, problem, observed):
    turned = {n: problem.inputs[n][::-1] for n in ("a", "b")} | {"gates": problem.inputs["gates"][..., ::-1]}
    turned |= {"mask": problem.inputs["mask"][..., ::-1, :]} if "mask" in problem.inputs else {}
    subject.hold(problem.replace(inputs=problem.inputs | turned, cotangents={}), observed, gradients=False)


@law("xlora.gates", "equal rows of the head are equal gates")
def _(subject, problem, observed):
    """Whatever the hidden state; within the budget, since a product may sum each column in its own order."""
    first = {
        n: np.broadcast_to(problem.inputs[n][:1], problem.inputs[n].shape)
        for n in ("head", "head_bias")
        if n in problem.inputs
    }
    alike = problem.replace(inputs=problem.inputs | first, cotangents={})
    gates = subject.run(alike)["gates"]
    beside = {"gates": np.roll(gates, 1, axis=-1)}
    agree("neighbours", subject, (alike, {"gates": gates}), (alike, beside), {"gates": "gates"}, observed)


@law("xlora.gates", "the order of the adapters is none")
def _(subject, problem, observed):
    turned = {n: problem.inputs[n][::-1] for n in ("head", "head_bias") if n in problem.inputs}
    forward = problem.replace(cotangents={})
    other = forward.replace(inputs=problem.inputs | turned)
    back = {"gates": subject.run(other)["gates"][..., ::-1]}
    agree("turned", subject, (forward, subject.run(forward)), (forward, back), {"gates": "gates"}, observed)


@law("xlora.top", "as many gates are left as are chosen, and they keep every bit")
def _(subject, problem, observed):
    """Without the second softmax; all of them where all are chosen."""
    attributes = problem.attributes | {"softmax": False}
    kept = subject.run(problem.replace(attributes=attributes, cotangents={}))["kept"]
    gates, left = problem.inputs["gates"], kept != 0
    most = int(np.max(np.count_nonzero(left, axis=-1), initial=0))
    if most > problem.attributes["chosen"]:
        raise Violation(
            f"{most} gates of a token are left, but {problem.attributes['chosen']} are chosen", {"kept": kept}
        )
    equal("what is left", kept[left], gates[left], observed)


@law("xlora.top", "all gates chosen are all gates")
def _(subject, problem, observed):
    attributes = problem.attributes | {"softmax": False, "chosen": problem.dims["k"]}
    kept = subject.run(problem.replace(attributes=attributes, cotangents={}))["kept"]
    equal("all", kept, problem.inputs["gates"], observed)
