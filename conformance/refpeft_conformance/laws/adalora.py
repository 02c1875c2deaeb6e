"""Laws of AdaLoRA."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws

update_laws("adalora", zero="e")


@law("adalora.linear", "a pruned triplet has no influence", regime="exact")
def _(subject, problem, observed):
    """With e_k = 0, whatever row k of A and column k of B are."""
    pruned = _changed(problem, e=0)
    other = _changed(pruned, a=2, b=-1)
    equal("pruned triplet", subject.run(other)["y"], subject.run(pruned)["y"], observed)


@law("adalora.linear", "a pruned triplet learns its singular value and nothing else", regime="exact", gradients=True)
def _(subject, problem, observed):
    """Which is how it comes back: with e_k = 0 row k of dA and column k of dB are zero."""
    pruned = problem.replace(inputs=_changed(problem, e=0).inputs)
    results = subject.run(pruned)
    equal("dA of a pruned triplet", results["da"][0], np.zeros_like(results["da"][0]), observed)
    equal("dB of a pruned triplet", results["db"][:, 0], np.zeros_like(results["db"][:, 0]), observed)


@law("adalora.orthogonality", "orthogonal vectors cost nothing")
def _(subject, problem, observed):
    """Rows of A and columns of B from the identity, where there are enough: the penalty is zero."""
    r, o, i = (problem.dims[n] for n in ("r", "o", "i"))
    if r > min(o, i):
        return
    dtype = problem.inputs["a"].dtype
    orthogonal = problem.replace(inputs={"a": np.eye(r, i, dtype=dtype), "b": np.eye(o, r, dtype=dtype)}, cotangents={})
    penalty = subject.run(orthogonal)["penalty"]
    equal("penalty", penalty, np.zeros_like(penalty), observed)


@law("adalora.orthogonality", "no gradient flows where vectors are orthogonal", gradients=True)
def _(subject, problem, observed):
    """Also through the norm, which has a kink there."""
    r, o, i = (problem.dims[n] for n in ("r", "o", "i"))
    if r > min(o, i):
        return
    dtype = problem.inputs["a"].dtype
    results = subject.run(problem.replace(inputs={"a": np.eye(r, i, dtype=dtype), "b": np.eye(o, r, dtype=dtype)}))
    for name in ("da", "db"):
        equal(name, results[name], np.zeros_like(results[name]), observed)


@law("adalora.importance", "signs do not matter", regime="exact")
def _(subject, problem, observed):
    """Sensitivity is |p g|: of -p and g, and of p and -g."""
    wanted = subject.run(problem)
    for name in ("p", "grad"):
        turned = problem.replace(inputs=problem.inputs | {name: -problem.inputs[name]})
        for output, value in subject.run(turned).items():
            equal(f"{output} with -{name}", value, wanted[output], observed)


@law("adalora.importance", "a parameter without gradient fades", regime="exact")
def _(subject, problem, observed):
    """Its sensitivity is beta1 times the one before."""
    still = problem.replace(inputs=problem.inputs | {"grad": np.zeros_like(problem.inputs["grad"])})
    faded = problem.inputs["smoothed"].astype(np.float64) * problem.attributes["beta1"]
    equal("sensitivity", subject.run(still)["sensitivity"].astype(np.float64), faded, observed)


def _changed(problem, **factors):
    """The problem with the first triplet's parts multiplied."""
    arrays = {}
    for name, factor in factors.items():
        arrays[name] = problem.inputs[name].copy()
        part = (slice(None), 0) if name == "b" else (0,)
        arrays[name][part] *= arrays[name].dtype.type(factor)
    return problem.replace(inputs=problem.inputs | arrays, cotangents=problem.cotangents)
