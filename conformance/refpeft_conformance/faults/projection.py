"""Mistakes with gradients that are projected on what is orthogonal to frozen directions."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_inputs

_LINEAR = {"operations": "osf.linear"}


def _unprojected(problem, run):
    """The results as they are without frozen directions."""
    return run(with_inputs(problem, **{n: np.zeros_like(problem.inputs[n]) for n in ("high_u", "high_v")}))


def _each(gradient: str):
    @fault("projection", f"{gradient} not projected", gradient, "high_u", **_LINEAR)
    def _(problem, run):
        return only(gradient, _unprojected(problem, run), run(problem))

    @fault("projection", f"{gradient} projected on the frozen directions", gradient, "high_u", **_LINEAR)
    def _(problem, run):
        """What should be taken out is kept."""
        results = run(problem)
        if gradient not in results:
            return results
        return results | {gradient: wide(_unprojected(problem, run)[gradient]) - wide(results[gradient])}


for _gradient in ("du", "dv"):
    _each(_gradient)


@fault("projection", "the parameters projected, not their gradients", "du", "high_u", **_LINEAR)
def _(problem, run):
    i = {n: wide(problem.inputs[n]) for n in ("u", "v", "high_u", "high_v")}
    u, v = i["u"] - i["high_u"] @ (i["high_u"].T @ i["u"]), i["v"] - (i["v"] @ i["high_v"].T) @ i["high_v"]
    return run(with_inputs(problem, u=u, v=v))


@fault("projection", "singular values squared in the update", "u", "s", "v", operations="osf.*")
def _(problem, run):
    return run(with_inputs(problem, s=wide(problem.inputs["s"]) ** 2))


@fault("projection", "singular values left out of the update", "u", "s", "v", operations="osf.*")
def _(problem, run):
    return run(with_inputs(problem, s=np.ones_like(problem.inputs["s"])))


@fault("projection", "singular values in ascending order", "u", "s", "v", operations="osf.*")
def _(problem, run):
    return run(with_inputs(problem, s=problem.inputs["s"][::-1].copy()))


@fault("projection", "gradient to the values without the left vectors", "ds", "u", operations="osf.*")
def _(problem, run):
    return only("ds", run(with_inputs(problem, u=np.ones_like(problem.inputs["u"]))), run(problem))
