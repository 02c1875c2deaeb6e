"""Laws of HiRA."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws

update_laws("hira", zero="b")


@law("hira.merge", "what is zero in the weight stays zero", regime="exact")
def _(subject, problem, observed):
    """The update has the sparsity pattern of the weight."""
    merged, weight = subject.run(problem)["merged"], problem.inputs["weight"]
    equal("zeros", np.where(weight == 0, merged, 0), np.zeros_like(merged), observed)


@law("hira.merge", "the update is linear in the weight", regime="exact")
def _(subject, problem, observed):
    """Twice the weight, twice the merged weight: bit for bit."""
    two = problem.inputs["weight"].dtype.type(2)
    twice = problem.replace(inputs=problem.inputs | {"weight": problem.inputs["weight"] * two}, cotangents={})
    equal("doubled", subject.run(twice)["merged"], subject.run(problem)["merged"] * two, observed)
