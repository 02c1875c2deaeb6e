"""Laws of DeLoRA."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws
from refpeft_conformance.verdict import Violation

update_laws("delora", zero="b")


@law("delora.linear", "a zero boundary leaves the base layer", regime="exact")
def _(subject, problem, observed):
    """As a zero b does."""
    zero = {n: problem.inputs | {n: np.zeros_like(problem.inputs[n])} for n in ("boundary", "b")}
    first, second = (subject.run(problem.replace(inputs=arrays, cotangents={}))["y"] for arrays in zero.values())
    equal("zero boundary", first, second, observed)


@law("delora.merge", "the update is no longer than the boundary")
def _(subject, problem, observed):
    """||merged - 0|| <= abs(lambda) on a zero weight without norms, in the Frobenius norm, to within its budget."""
    arrays = {n: a for n, a in problem.inputs.items() if n != "norms"}
    arrays["weight"] = np.zeros_like(arrays["weight"])
    alone = problem.replace(inputs=arrays, cotangents={})
    (merged,) = subject.compare(alone, subject.run(alone), ["merged"])
    length, boundary = np.linalg.norm(merged.got.astype(np.float64)), abs(float(arrays["boundary"]))
    rounding = (merged.got.size + 4) * 2.0**-52 * boundary
    observed.elements += 1
    if not length <= boundary + np.linalg.norm(merged.golden.budget) + rounding:
        raise Violation(f"the update has norm {length:g}, beyond the boundary {boundary:g}", {"merged": merged.got})


@law("delora.merge", "the lengths of a and b do not matter", regime="exact")
def _(subject, problem, observed):
    """Doubled they give the same update, bit for bit, where the floor is below all norms but those of zeros."""
    low = problem.replace(attributes=problem.attributes | {"floor": 0.25}, cotangents={})
    doubled = {n: low.inputs[n] * low.inputs[n].dtype.type(2) for n in ("a", "b")}
    other = low.replace(inputs=low.inputs | doubled)
    equal("A and B doubled", subject.run(other)["merged"], subject.run(low)["merged"], observed)
