"""Laws of QA-LoRA."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law, update_laws

update_laws("qalora", zero="b")


@law("qalora.merge", "the update is constant within a group", regime="exact")
def _(subject, problem, observed):
    """So that it goes into the zero points: on a zero weight, all columns of a group are equal."""
    zero = {"weight": np.zeros_like(problem.inputs["weight"])}
    merged = subject.run(problem.replace(inputs=problem.inputs | zero, cotangents={}))["merged"]
    groups = merged.reshape(len(merged), -1, problem.attributes["group"])
    equal("a group", groups, np.broadcast_to(groups[..., :1], groups.shape), observed)


@law("qalora.linear", "groups of one leave LoRA", regime="exact", needs=("lora.linear",))
def _(subject, problem, observed):
    """In the paper's reading: each input is its own group."""
    if problem.attributes["group"] != 1 or problem.attributes["variant"] != "paper":
        return
    lora = Problem.of("lora.linear", problem.inputs, {"scaling": problem.attributes["scaling"]}, {}, problem.dtype)
    alone = subject.run(problem.replace(cotangents={}))["y"]
    equal("groups of one", alone, subject.run(lora)["y"], observed)
