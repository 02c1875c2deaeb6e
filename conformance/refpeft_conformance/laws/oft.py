"""Laws of OFT."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws
from refpeft_conformance.laws._convolution import merged_alone
from refpeft_conformance.laws.rotation import keeps_angles

update_laws("oft", zero="skew")
merged_alone("oft.conv2d", "oft.merge")
keeps_angles("oft.merge", lambda problem: problem if problem.attributes["variant"] != "neumann" else None)


@law("oft.linear", "peft's rotation is the paper's of the negated matrix", regime="exact")
def _(subject, problem, observed):
    """(I - K)(I + K)^-1 is (I + K)(I - K)^-1 at -K, bit for bit."""
    other = {"paper": "peft", "peft": "paper"}.get(problem.attributes["variant"])
    if other is None:
        return
    negated = problem.replace(
        inputs=problem.inputs | {"skew": -problem.inputs["skew"]},
        attributes=problem.attributes | {"variant": other},
        cotangents={},
    )
    equal("-K", subject.run(negated)["y"], subject.run(problem.replace(cotangents={}))["y"], observed)


@law("oft.linear", "a shared block stands for equal ones", regime="exact")
def _(subject, problem, observed):
    """The first block's K for all of them, once and repeated."""
    skew = problem.inputs["skew"][:1]
    count = problem.dims["i"] // problem.attributes["block"]
    both = [
        problem.replace(
            inputs=problem.inputs | {"skew": rows}, attributes=problem.attributes | {"share": share}, cotangents={}
        )
        for rows, share in ((skew, True), (np.repeat(skew, count, axis=0), False))
    ]
    equal("repeated", subject.run(both[1])["y"], subject.run(both[0])["y"], observed)
