"""Mistakes with edits of hidden states."""

from __future__ import annotations

from refpeft_conformance.faults import fault, with_attributes, with_inputs


@fault("edits", "what the state has in the subspace left in it", "projection", operations="reft.edit")
def _(problem, run):
    return run(with_attributes(problem, subtract=False))


@fault("edits", "source and projection swapped", "source", "projection", operations="reft.edit")
def _(problem, run):
    given = problem.inputs
    results = run(with_inputs(problem, source=given["projection"].copy(), projection=given["source"].copy()))
    swapped = {"dsource": "dprojection", "dprojection": "dsource"}
    return results | {n: results[m] for n, m in swapped.items() if m in results}


@fault("edits", "gradient to the projection as if nothing were subtracted", "dprojection", operations="reft.edit")
def _(problem, run):
    """The update's values are right, and taken for a constant: dR = uᵀ dy."""
    honest = run(problem)
    if not problem.attributes["subtract"] or "dprojection" not in honest:
        return honest
    return honest | {"dprojection": honest["dprojection"] + honest["dsource"]}
