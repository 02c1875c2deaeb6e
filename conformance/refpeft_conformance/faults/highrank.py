"""Mistakes with a weight multiplied by a low-rank matrix."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_inputs


@fault("high rank", "the low-rank matrix added instead of multiplied", "a", "b", "weight", operations="hira.*")
def _(problem, run):
    i = problem.inputs
    product, weight, results = wide(i["b"]) @ wide(i["a"]), wide(i["weight"]), run(problem)
    if "merged" in results:
        return results | {"merged": weight + product}
    y = wide(i["x"]) @ (weight + product).T
    return results | {"y": y if "bias" not in i else y + wide(i["bias"])}


@fault("high rank", "the base weight forgotten beside the product", "a", "b", "weight", operations="hira.*")
def _(problem, run):
    """W o (B A) for W + W o (B A)."""
    i, results = problem.inputs, run(problem)
    if "merged" in results:
        return results | {"merged": wide(results["merged"]) - wide(i["weight"])}
    return results | {"y": wide(results["y"]) - wide(i["x"]) @ wide(i["weight"]).T}


@fault("high rank", "the gradient to b without the weight", "db", "weight", operations="hira.*")
def _(problem, run):
    return only("db", run(with_inputs(problem, weight=np.ones_like(problem.inputs["weight"]))), run(problem))


@fault("high rank", "no gradient to the weight through the product", "dweight", "b", operations="hira.*")
def _(problem, run):
    return only("dweight", run(with_inputs(problem, b=np.zeros_like(problem.inputs["b"]))), run(problem))
