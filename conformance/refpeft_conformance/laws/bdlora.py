"""Laws of BD-LoRA."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law, update_laws

update_laws("bdlora", zero="b")


@law("bdlora.linear", "it is LoRA with the blocks on the diagonal", regime="exact", needs=("lora.linear",))
def _(subject, problem, observed):
    """And zeros beside them."""
    dense = {n: _diagonal(problem.inputs[n], problem.attributes["blocks_" + n]) for n in ("a", "b")}
    scaling = {"scaling": problem.attributes["scaling"]}
    lora = Problem.of("lora.linear", problem.inputs | dense, scaling, {}, problem.dtype)
    equal("dense", subject.run(problem.replace(cotangents={}))["y"], subject.run(lora)["y"], observed)


@law("bdlora.linear", "a device needs the inputs of its own block only", regime="exact")
def _(subject, problem, observed):
    """Where A alone has blocks: the layers of the single blocks, on zero weights, add up to the whole."""
    blocks = problem.attributes["blocks_a"]
    if problem.attributes["blocks_b"] != 1:
        return
    i = {n: a for n, a in problem.inputs.items() if n != "bias"} | {"weight": np.zeros_like(problem.inputs["weight"])}
    alone = problem.replace(inputs=i, cotangents={})
    total = np.zeros(i["x"].shape[:-1] + i["weight"].shape[:1])
    for j in range(blocks):
        x = np.zeros_like(i["x"])
        mine = slice(j * x.shape[-1] // blocks, (j + 1) * x.shape[-1] // blocks)
        x[..., mine] = i["x"][..., mine]
        total += subject.run(alone.replace(inputs=i | {"x": x}))["y"].astype(np.float64)
    equal("sum over devices", subject.run(alone)["y"].astype(np.float64), total, observed)


def _diagonal(blocks, count):
    p, m = blocks.shape
    dense = np.zeros((p, count * m), blocks.dtype)
    for j in range(count):
        mine = slice(j * p // count, (j + 1) * p // count)
        dense[mine, j * m : (j + 1) * m] = blocks[mine]
    return dense
