"""Mistakes with dropout, whose mask is an input."""

from __future__ import annotations

from refpeft_conformance.faults import fault, with_attributes


def _without_mask(problem):
    return problem.replace(inputs={n: a for n, a in problem.inputs.items() if n != "mask"})


def _inverted(problem):
    return (
        problem.replace(inputs=problem.inputs | {"mask": ~problem.inputs["mask"]})
        if "mask" in problem.inputs
        else problem
    )


@fault("dropout", "dropout not scaled", "mask", "keep=")
def _(problem, run):
    return run(with_attributes(problem, keep=1.0))


@fault("dropout", "dropout scaled twice", "mask", "keep=")
def _(problem, run):
    return run(with_attributes(problem, keep=problem.attributes["keep"] ** 2))


@fault("dropout", "dropout mask ignored", "mask", "keep=")
def _(problem, run):
    return run(_without_mask(problem))


@fault("dropout", "dropout mask inverted", "mask", "keep=")
def _(problem, run):
    return run(_inverted(problem))


@fault("dropout", "dropout in forward only", "mask", "keep=")
def _(problem, run):
    honest = run(problem)
    return honest | {n: g for n, g in run(_without_mask(problem)).items() if n.startswith("d")}


@fault("dropout", "a fresh dropout mask in backward", "mask", "keep=")
def _(problem, run):
    honest = run(problem)
    return honest | {n: g for n, g in run(_inverted(problem)).items() if n.startswith("d")}
