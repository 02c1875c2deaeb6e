"""Mistakes with the Hadamard product of two low-rank matrices."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, with_inputs


@fault("hadamard", "one factor of the Hadamard product forgotten", "w1_a", "w2_b", operations="loha*.*")
def _(problem, run):
    """The second product alone: the first taken as ones."""
    if not problem.dims["r"]:
        return run(problem)
    ones = {n: np.zeros_like(problem.inputs[n]) for n in ("w1_a", "w1_b", "core1") if n in problem.inputs}
    ones["w1_b"][0, :] = 1
    if "core1" in ones:
        ones["w1_a"][0, :] = ones["core1"][0, 0] = 1
    else:
        ones["w1_a"][:, 0] = 1
    return run(with_inputs(problem, **ones))


@fault("hadamard", "the gradient of the second product from itself", "dw2_a", operations="loha*.*")
def _(problem, run):
    """dW2 = u o W2 instead of u o W1."""
    pairs = {"w1_a": "w2_a", "w1_b": "w2_b", "core1": "core2"}
    twice = run(with_inputs(problem, **{n: problem.inputs[m] for n, m in pairs.items() if n in problem.inputs}))
    return only("dw2_a", twice, run(problem))


@fault("hadamard", "the cores' two ranks swapped", "core1", operations="loha_core.*")
def _(problem, run):
    return run(with_inputs(problem, **{n: problem.inputs[n].swapaxes(0, 1).copy() for n in ("core1", "core2")}))


@fault("hadamard", "the gradients through the other kernel's core", "core1", "dw1_a", operations="loha_core.*")
def _(problem, run):
    """dW1a from T2 and W2b and dW2a from T1 and W1b, as LyCORIS and peft have it; K1 and K2 in the cotangents are right."""
    results, i = run(problem), problem.inputs
    first = run(with_inputs(problem, core1=i["core2"], w1_b=i["w2_b"]))
    second = run(with_inputs(problem, core2=i["core1"], w2_b=i["w1_b"]))
    return only("dw2_a", second, only("dw1_a", first, results))
