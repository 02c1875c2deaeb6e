"""Laws that the methods share which turn a layer's neurons: what a rotation leaves as it is."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import law
from refpeft_conformance.verdict import Violation


def keeps_angles(operation: str, claimed=lambda problem: problem) -> None:
    """The law that ``operation``, a merge, leaves all lengths of the rows of W and the angles between them: M Mᵀ = W Wᵀ.

    ``claimed`` gives of a problem the one for which the method claims it, or None.
    """

    @law(operation, "the neurons keep their lengths and the angles between them")
    def _(subject, problem, observed):
        problem = claimed(problem.replace(cotangents={}))
        if problem is None:
            return
        (merged,) = subject.compare(problem, subject.run(problem), ["merged"])
        weight, got = problem.inputs["weight"].astype(np.float64), merged.got.astype(np.float64)
        across = np.abs(got) @ merged.golden.budget.T
        terms = np.abs(got) @ np.abs(got).T + np.abs(weight) @ np.abs(weight).T
        room = (
            across + across.T + merged.golden.budget @ merged.golden.budget.T + (weight.shape[1] + 2) * 2.0**-52 * terms
        )
        apart = np.abs(got @ got.T - weight @ weight.T)
        observed.elements += apart.size
        if np.any(~(apart <= room)):
            at = tuple(int(j) for j in np.argwhere(~(apart <= room))[0])
            raise Violation(
                f"rows {at[0]} and {at[1]} have the product {(got @ got.T)[at]:g} but had {(weight @ weight.T)[at]:g}, "
                f"where the budgets leave {room[at]:.3g}",
                {"merged": merged.got},
            )
