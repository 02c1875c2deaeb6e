"""Laws of Shadow."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, without


@law("shadow.inject", "a zero up leaves the hidden states")
def _(subject, problem, observed):
    equal("zero up", subject.run(without(problem, "up"))["y"], problem.inputs["x"], observed)


@law("shadow.inject", "hidden states that are their shadow are left")
def _(subject, problem, observed):
    alike = problem.replace(inputs=problem.inputs | {"shadow": problem.inputs["x"]}, cotangents={})
    equal("no difference", subject.run(alike)["y"], problem.inputs["x"], observed)


def _gated(problem, argument: float):
    """The problem with gates that are open or shut, whatever x is: the largest argument that every format has."""
    inputs = problem.inputs
    bias = np.full_like(inputs["gate_up_bias"], argument)
    return problem.replace(
        inputs=inputs | {"gate_up": np.zeros_like(inputs["gate_up"]), "gate_up_bias": bias}, cotangents={}
    )


@law("shadow.update", "a shut gate leaves the shadow")
def _(subject, problem, observed):
    """sigmoid(-1024) is zero in every format."""
    equal("shut", subject.run(_gated(problem, -1024.0))["y"], problem.inputs["shadow"], observed)


@law("shadow.update", "an open gate forgets the shadow")
def _(subject, problem, observed):
    """sigmoid(1024) is one: y is the candidate, whatever the shadow was."""
    opened = _gated(problem, 1024.0)
    other = opened.replace(inputs=opened.inputs | {"shadow": np.zeros_like(problem.inputs["shadow"])})
    equal("open", subject.run(opened)["y"], subject.run(other)["y"], observed)
