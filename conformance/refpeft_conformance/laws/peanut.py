"""Laws of PEANuT."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws
from refpeft_conformance.laws.explicit import explicit_update

update_laws("peanut", zero="last")
explicit_update("peanut", "zero, as ReLU towers without biases answer zero", lambda i, _: np.zeros_like(i["weight"]))


@law("peanut.merge", "the update is the answer to each column of the weight alone", regime="exact")
def _(subject, problem, observed):
    """The first column by itself."""
    problem = problem.replace(cotangents={})
    alone = problem.replace(inputs=problem.inputs | {"weight": problem.inputs["weight"][:, :1].copy()})
    equal("first column", subject.run(alone)["merged"], subject.run(problem)["merged"][:, :1], observed)
