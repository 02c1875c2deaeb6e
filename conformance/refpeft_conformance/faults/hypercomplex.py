"""Mistakes with sums of Kronecker products of small rules and weights."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_inputs


def _weights(problem):
    """W_i of either form."""
    i = problem.inputs
    return wide(i["weights"]) if "weights" in i else wide(i["left"]) @ wide(i["right"])


@fault("hypercomplex", "the Kronecker factors change places", "rule", operations="compacter.*")
def _(problem, run):
    """W_i (x) A_i, a matrix of the same shape."""
    matrix = sum(np.kron(w, a) for a, w in zip(wide(problem.inputs["rule"]), _weights(problem)))
    return run(problem) | {"y": wide(problem.inputs["x"]) @ matrix + wide(problem.inputs.get("bias", np.zeros(1)))}


@fault("hypercomplex", "the rules transposed", "rule", operations="compacter.*")
def _(problem, run):
    return run(with_inputs(problem, rule=problem.inputs["rule"].transpose(0, 2, 1).copy()))


@fault("hypercomplex", "the last Kronecker product left out", "rule", operations="compacter.*")
def _(problem, run):
    rule = problem.inputs["rule"].copy()
    rule[-1:] = 0
    return run(with_inputs(problem, rule=rule))


@fault("hypercomplex", "one rule for all", "rule", operations="compacter.*")
def _(problem, run):
    """The first one, in each term of the sum."""
    return run(
        with_inputs(problem, rule=np.broadcast_to(problem.inputs["rule"][:1], problem.inputs["rule"].shape).copy())
    )


@fault("hypercomplex", "the gradient of the rules transposed", "drule", operations="compacter.*")
def _(problem, run):
    results = run(problem)
    return results | ({"drule": results["drule"].transpose(0, 2, 1).copy()} if "drule" in results else {})
