"""Laws of SHiRA."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws

update_laws("shira", zero="values")


@law("shira.merge", "elements outside the mask keep every bit")
def _(subject, problem, observed):
    kept = np.ones(problem.inputs["weight"].size, bool)
    kept[problem.inputs["places"]] = False
    merged = subject.run(problem.replace(cotangents={}))["merged"].reshape(-1)
    equal("outside the mask", merged[kept], problem.inputs["weight"].reshape(-1)[kept], observed)


@law("shira.linear", "the order of the places is none")
def _(subject, problem, observed):
    """Places and values in another order are the same update."""
    turned = {n: problem.inputs[n][::-1] for n in ("values", "places")}
    other = problem.replace(inputs=problem.inputs | turned, cotangents={})
    subject.hold(other, observed, gradients=False)
