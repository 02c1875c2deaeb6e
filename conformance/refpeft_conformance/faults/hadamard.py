"""Mistakes with the Hadamard product of two low-rank matrices."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, with_inputs


@fault("hadamard", "one factor of the Hadamard product forgotten", "w1_a", "w2_b", operations="loha.*")
def _(problem, run):
    """W2a W2b alone: W1a W1b taken as ones."""
    ones = {"w1_a": np.zeros_like(problem.inputs["w1_a"]), "w1_b": np.zeros_like(problem.inputs["w1_b"])}
    if not problem.dims["r"]:
        return run(problem)
    ones["w1_a"][:, 0] = 1
    ones["w1_b"][0, :] = 1
    return run(with_inputs(problem, **ones))


@fault("hadamard", "the gradient of the second product from itself", "dw2_a", operations="loha.*")
def _(problem, run):
    """dW2 = u o W2 instead of u o W1."""
    i = problem.inputs
    twice = run(with_inputs(problem, w1_a=i["w2_a"], w1_b=i["w2_b"]))
    return only("dw2_a", twice, run(problem))
