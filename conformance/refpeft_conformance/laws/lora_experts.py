"""Laws of LoRA on the weights of experts."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, without
from refpeft_conformance.strategies import is_exact


def factors_of(problem, j: int) -> dict[str, np.ndarray]:
    """W_j, A_j and B_j of one expert, read off by their places."""
    i, e = problem.inputs, problem.dims["e"]
    r = problem.dims["er"] // e
    weight = i["weight"][j] if problem.attributes["layout"] == "out_in" else i["weight"][j].T
    return {"weight": weight, "a": i["a"][j * r : (j + 1) * r], "b": i["b"][:, j::e]}


@law("lora.experts", "an expert's tokens are its own layer", regime="exact", needs=("lora.linear",))
def _(subject, problem, observed):
    """Those of the first token's expert, under lora.linear with the factors that lie in its places."""
    if not problem.dims["n"]:
        return
    j = problem.inputs["expert"][0]
    its = problem.inputs["expert"] == j
    arrays = factors_of(problem, j) | {"x": problem.inputs["x"][its]}
    alone = Problem.of("lora.linear", arrays, {"scaling": problem.attributes["scaling"]}, {}, problem.dtype)
    whole, precision = problem.replace(cotangents={}), subject.precision(problem.dtype)
    if is_exact(whole, precision) and is_exact(alone, precision):
        equal("the expert alone", subject.run(whole)["y"][its], subject.run(alone)["y"], observed)


@law("lora.experts", "tokens may change places", regime="exact")
def _(subject, problem, observed):
    turned = {n: x[::-1].copy() if n in ("x", "expert") else x for n, x in problem.inputs.items()}
    whole = problem.replace(cotangents={})
    equal("in reverse", subject.run(whole.replace(inputs=turned))["y"], subject.run(whole)["y"][::-1], observed)


@law("lora.experts", "experts that no token takes get no gradient", gradients=True)
def _(subject, problem, observed):
    results, e = subject.run(problem), problem.dims["e"]
    r = problem.dims["er"] // e
    for j in np.setdiff1d(np.arange(e), problem.inputs["expert"]):
        for gradient in results["dweight"][j], results["da"][j * r : (j + 1) * r], results["db"][:, j::e]:
            equal(f"expert {j}", gradient, np.zeros_like(gradient), observed)


@law("lora.experts", "the merged experts need no update", regime="exact", needs=("lora.experts_merge",))
def _(subject, problem, observed):
    inputs = {n: problem.inputs[n] for n in ("weight", "a", "b")}
    merging = Problem.of("lora.experts_merge", inputs, problem.attributes, {}, problem.dtype)
    merged = subject.run(merging)["merged"]
    adapted, plain = problem.replace(cotangents={}), without(problem, "b")
    plain = plain.replace(inputs=plain.inputs | {"weight": merged})
    results = [subject.run(p) for p in (adapted, plain)]
    precision = subject.precision(problem.dtype)
    if all(is_exact(p, precision) for p in (adapted, merging, plain)):
        equal("merged experts", results[1]["y"], results[0]["y"], observed)
    else:
        agree("merged experts", subject, (adapted, results[0]), (plain, results[1]), {"y": "y"}, observed)


@law("lora.experts_merge", "a zero b leaves the weights")
def _(subject, problem, observed):
    equal("zero b", subject.run(without(problem, "b"))["merged"], problem.inputs["weight"], observed)


@law("lora.experts_merge", "an expert is merged as a layer of its own", regime="exact", needs=("lora.merge",))
def _(subject, problem, observed):
    j, precision = problem.dims["e"] - 1, subject.precision(problem.dtype)
    scaling = {"scaling": problem.attributes["scaling"]}
    alone, whole = (
        Problem.of("lora.merge", factors_of(problem, j), scaling, {}, problem.dtype),
        problem.replace(cotangents={}),
    )
    if is_exact(whole, precision) and is_exact(alone, precision):
        merged = subject.run(whole)["merged"][j]
        merged = merged if problem.attributes["layout"] == "out_in" else merged.T
        equal("the last expert", merged, subject.run(alone)["merged"], observed)
