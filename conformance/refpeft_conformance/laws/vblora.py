"""Laws of VB-LoRA."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws

update_laws("vblora", zero="vectors")


@law("vblora.linear", "a constant added to a stretch's logits changes nothing", regime="exact")
def _(subject, problem, observed):
    """The softmax sees differences only."""
    raised = {n: problem.inputs[n] + problem.inputs[n].dtype.type(1024) for n in ("logits_a", "logits_b")}
    other = problem.replace(inputs=problem.inputs | raised, cotangents={})
    equal("logits raised", subject.run(other)["y"], subject.run(problem.replace(cotangents={}))["y"], observed)


@law("vblora.linear", "the bank may be listed in any order", regime="exact")
def _(subject, problem, observed):
    """Vectors and logits in reverse."""
    i = problem.inputs
    turned = {n: np.ascontiguousarray(i[n][..., ::-1]) for n in ("logits_a", "logits_b")}
    other = problem.replace(inputs=i | turned | {"vectors": np.ascontiguousarray(i["vectors"][::-1])}, cotangents={})
    equal("bank in reverse", subject.run(other)["y"], subject.run(problem.replace(cotangents={}))["y"], observed)
