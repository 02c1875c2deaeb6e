"""Laws of WaveFT."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws

update_laws("waveft", zero="values")


@law("waveft.merge", "a coefficient of Haar's wavelet moves two rows and two columns at most")
def _(subject, problem, observed):
    """The rest of the weight keeps every bit."""
    o, i = problem.inputs["weight"].shape
    haar = problem.replace(attributes=problem.attributes | {"wavelet": "db1"}, cotangents={})
    kept = np.ones((o + 1, i + 1), bool)
    for row, column in zip(*np.divmod(problem.inputs["places"], i)):
        h, w = 2 * (row % ((o + 1) // 2)), 2 * (column % ((i + 1) // 2))
        kept[h : h + 2, w : w + 2] = False
    kept = kept[:o, :i]
    equal("out of reach", subject.run(haar)["merged"][kept], problem.inputs["weight"][kept], observed)


@law("waveft.linear", "the order of the places is none")
def _(subject, problem, observed):
    """Places and values in another order are the same update."""
    turned = {n: problem.inputs[n][::-1] for n in ("values", "places")}
    other = problem.replace(inputs=problem.inputs | turned, cotangents={})
    subject.hold(other, observed, gradients=False)
