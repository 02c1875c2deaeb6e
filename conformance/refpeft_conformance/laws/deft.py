"""Laws of DEFT."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws
from refpeft_conformance.laws.explicit import explicit_update

update_laws("deft", zero="subspace")


def _filled(i, attributes):
    scaling = attributes["scaling"] if attributes["variant"] == "deft" else 0.0
    return scaling * i["subspace"] @ i["fill"]


explicit_update("deft", "what fills the subspace", _filled)


@law("deft.merge", "an orthogonal projection takes its subspace out and leaves the rest")
def _(subject, problem, observed):
    """With unit vectors for P and nothing to fill in, these rows of W become zero and the others stay."""
    o, r = problem.inputs["subspace"].shape
    if r > o:
        return
    axes = {"subspace": np.eye(o, r).astype(problem.inputs["subspace"].dtype)}
    projected = problem.replace(
        inputs=problem.inputs | axes,
        attributes=problem.attributes | {"projection": "orthogonal", "variant": "para"},
        cotangents={},
    )
    merged = subject.run(projected)["merged"]
    equal("rows of the subspace", merged[:r], np.zeros_like(merged[:r]), observed)
    equal("other rows", merged[r:], problem.inputs["weight"][r:], observed)
