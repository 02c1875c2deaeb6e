"""Laws of the scaling."""

from __future__ import annotations

from refpeft_conformance.laws import equal, law


@law("lora.scaling", "at rank one the scaling is alpha")
def _(subject, problem, observed):
    at_one = problem.replace(attributes=problem.attributes | {"rank": 1.0}, cotangents={})
    equal("rank one", subject.run(at_one)["s"], problem.inputs["alpha"], observed)
