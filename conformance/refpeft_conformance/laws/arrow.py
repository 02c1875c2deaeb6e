"""Laws of Arrow."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, base_law, equal, law

base_law("arrow.linear", "b")


@law("arrow.linear", "whichever way a prototype points, the output is the same")
def _(subject, problem, observed):
    """Bit for bit, as only the sign of a product changes."""
    forward = problem.replace(cotangents={})
    turned = forward.replace(inputs=problem.inputs | {"prototypes": -problem.inputs["prototypes"]})
    equal("turned", subject.run(turned)["y"], subject.run(forward)["y"], observed)


@law("arrow.linear", "the order of the adapters is none")
def _(subject, problem, observed):
    turned = {n: problem.inputs[n][::-1] for n in ("a", "b", "prototypes")}
    subject.hold(problem.replace(inputs=problem.inputs | turned, cotangents={}), observed, gradients=False)


@law("arrow.linear", "adapters that are all the same are one LoRA", needs=("lora.linear",))
def _(subject, problem, observed):
    """Whichever a token takes, its gates sum to one."""
    same = {n: np.broadcast_to(problem.inputs[n][:1], problem.inputs[n].shape).copy() for n in ("a", "b")}
    arrow = problem.replace(inputs=problem.inputs | same, cotangents={})
    arrays = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
    arrays |= {n: problem.inputs[n][0] for n in ("a", "b")}
    lora = Problem.of("lora.linear", arrays, {"scaling": problem.attributes["scaling"]}, {}, problem.dtype)
    agree("one LoRA", subject, (arrow, subject.run(arrow)), (lora, subject.run(lora)), {"y": "y"}, observed)


@law("arrow.linear", "of one adapter each, tokens are sequences that name their adapters", needs=("lora.batched",))
def _(subject, problem, observed):
    """Each names that whose prototype it lies along most."""
    i, a = problem.inputs, problem.attributes | {"chosen": 1}
    x = i["x"].reshape(-1, 1, i["x"].shape[-1])
    scaling = np.full(len(i["a"]), a["scaling"]).astype(x.dtype)
    if np.any(scaling.astype(float) != a["scaling"]):
        return
    one = problem.replace(inputs=i | {"x": x}, attributes=a, cotangents={})
    scores = np.abs(x.astype(np.float64) @ i["prototypes"].astype(np.float64).T)
    names = {"x": x, "adapter": scores.argmax(-1)[:, 0], "scaling": scaling}
    names |= {n: i[n] for n in ("weight", "a", "b", "bias") if n in i}
    named = Problem.of("lora.batched", names, {}, {}, problem.dtype)
    agree("by name", subject, (one, subject.run(one)), (named, subject.run(named)), {"y": "y"}, observed)
