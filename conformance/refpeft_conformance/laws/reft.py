"""Laws of ReFT."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law


def _changed(problem, attributes=None, **inputs):
    """The problem with other inputs and attributes, without cotangents."""
    attributes = problem.attributes | (attributes or {})
    return problem.replace(inputs=problem.inputs | inputs, attributes=attributes, cotangents={})


@law("reft.edit", "without a projection nothing is edited", regime="exact")
def _(subject, problem, observed):
    none = _changed(problem, projection=np.zeros_like(problem.inputs["projection"]))
    equal("no projection", subject.run(none)["y"], problem.inputs["x"], observed)


@law("reft.edit", "in an orthonormal basis the values are those of the source", regime="exact", needs=("nn.linear",))
def _(subject, problem, observed):
    """With the first r unit vectors as R: the first r elements of y are W x + b, and the others those of x."""
    given = problem.inputs
    r, d = given["projection"].shape
    edited = _changed(problem, {"subtract": True}, projection=np.eye(r, d).astype(given["x"].dtype))
    arrays = {"x": given["x"], "weight": given["source"]} | {n: given[n] for n in ("bias",) if n in given}
    values = subject.run(Problem.of("nn.linear", arrays, {}, {}, problem.dtype))["y"]
    expected = np.concatenate([values, given["x"][..., r:]], axis=-1)
    equal("unit vectors", subject.run(edited)["y"], expected, observed)
