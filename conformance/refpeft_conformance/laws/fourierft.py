"""Laws of FourierFT."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws

update_laws("fourierft", zero="values")


def _update(subject, problem, **changed):
    """What the merge adds to a weight of zeros."""
    base = {"weight": np.zeros_like(problem.inputs["weight"])}
    return subject.run(problem.replace(inputs=problem.inputs | base | changed, cotangents={}))["merged"]


@law("fourierft.merge", "a coefficient and that of the opposite frequency give the same update", regime="exact")
def _(subject, problem, observed):
    """cos is even: -p stands for p, counted around the sides."""
    o, i = problem.inputs["weight"].shape
    row, column = np.divmod(problem.inputs["places"], i)
    opposite = (-row % o) * i + -column % i
    equal("opposite frequencies", _update(subject, problem, places=opposite), _update(subject, problem), observed)


@law("fourierft.linear", "the order of the places is none")
def _(subject, problem, observed):
    """Places and values in another order are the same update."""
    turned = {n: problem.inputs[n][::-1] for n in ("values", "places")}
    other = problem.replace(inputs=problem.inputs | turned, cotangents={})
    subject.hold(other, observed, gradients=False)
