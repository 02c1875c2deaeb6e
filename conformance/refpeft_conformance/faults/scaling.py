"""Mistakes with the scaling alpha / r."""

from __future__ import annotations

import math

from refpeft_conformance.faults import fault, only, wide, with_attributes


@fault("scaling", "scaling lost", "scaling=")
def _(problem, run):
    return run(with_attributes(problem, scaling=1.0))


@fault("scaling", "scaling applied twice", "scaling=")
def _(problem, run):
    return run(with_attributes(problem, scaling=problem.attributes["scaling"] ** 2))


@fault("scaling", "scaling inverted", "scaling=")
def _(problem, run):
    return run(with_attributes(problem, scaling=1 / problem.attributes["scaling"]))


@fault("scaling", "scaling negated", "scaling=")
def _(problem, run):
    return run(with_attributes(problem, scaling=-problem.attributes["scaling"]))


@fault("scaling", "scaling off by one percent", "scaling=")
def _(problem, run):
    return run(with_attributes(problem, scaling=problem.attributes["scaling"] * 1.01))


@fault("scaling", "alpha over r for alpha over the root of r", "scaling=", "[r]")
def _(problem, run):
    return run(with_attributes(problem, scaling=problem.attributes["scaling"] / math.sqrt(problem.dims["r"])))


@fault("scaling", "scaling rounded to an integer", "scaling=")
def _(problem, run):
    return run(with_attributes(problem, scaling=float(round(problem.attributes["scaling"]))))


def _lost_in(gradient: str):
    @fault("scaling", f"scaling lost in {gradient} only", "scaling=", gradient)
    def _(problem, run):
        return only(gradient, run(with_attributes(problem, scaling=1.0)), run(problem))

    @fault("scaling", f"scaling twice in {gradient} only", "scaling=", gradient)
    def _(problem, run):
        return only(gradient, run(with_attributes(problem, scaling=problem.attributes["scaling"] ** 2)), run(problem))


for _gradient in ("da", "db", "dx"):
    _lost_in(_gradient)


@fault("scaling", "scaling left out of the bias of the update", "scaling=", "lora_bias")
def _(problem, run):
    if "lora_bias" not in problem.inputs:
        return run(problem)
    scaled = {n: a for n, a in problem.inputs.items() if n != "lora_bias"}
    bias = wide(problem.inputs["lora_bias"]).reshape(-1, *(1,) * (problem.inputs["weight"].ndim - 2))
    return run(problem) | {"y": wide(run(problem.replace(inputs=scaled))["y"]) + bias}


@fault("scaling", "the other kind of scaling", "variant=", "rank=")
def _(problem, run):
    other = {"lora": "rslora", "rslora": "lora"}[problem.attributes["variant"]]
    return run(with_attributes(problem, variant=other))


@fault("scaling", "alpha over r plus one", "variant=", "rank=")
def _(problem, run):
    return run(with_attributes(problem, rank=problem.attributes["rank"] + 1))
