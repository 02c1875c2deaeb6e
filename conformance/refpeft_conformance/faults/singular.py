"""Mistakes with an update in the form of a singular value decomposition, and with what prunes it."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_attributes, with_inputs


@fault("singular", "singular values squared", "e", "a", "b", operations="adalora.*")
def _(problem, run):
    return run(with_inputs(problem, e=wide(problem.inputs["e"]) ** 2))


@fault("singular", "singular values forgotten", "e", "a", "b", operations="adalora.*")
def _(problem, run):
    return run(with_inputs(problem, e=np.ones_like(problem.inputs["e"])))


@fault("singular", "absolute singular values", "e", "a", "b", operations="adalora.*")
def _(problem, run):
    return run(with_inputs(problem, e=np.abs(problem.inputs["e"])))


@fault("singular", "singular values in reverse order", "e", "a", "b", operations="adalora.*")
def _(problem, run):
    return run(with_inputs(problem, e=problem.inputs["e"][::-1].copy()))


@fault("singular", "gradient to a without the singular values", "de", "da", operations="adalora.*")
def _(problem, run):
    return only("da", run(with_inputs(problem, e=np.ones_like(problem.inputs["e"]))), run(problem))


@fault("singular", "divided by the rank once more", "e", "scaling=", operations="adalora.*")
def _(problem, run):
    return run(with_attributes(problem, scaling=problem.attributes["scaling"] / (problem.dims["r"] + 1)))


@fault("singular", "the penalty without the identity", "variant=", "a", "b", operations="adalora.orthogonality")
def _(problem, run):
    a, b = wide(problem.inputs["a"]), wide(problem.inputs["b"])
    squares = np.array([np.sum((a @ a.T) ** 2), np.sum((b.T @ b) ** 2)])
    penalty = squares.sum() if problem.attributes["variant"] == "squared" else np.sqrt(squares).sum() / 2
    return run(problem) | {"penalty": np.asarray(penalty)}


@fault("singular", "the other kind of penalty", "variant=", "a", "b", operations="adalora.orthogonality")
def _(problem, run):
    other = {"squared": "norm", "norm": "squared"}[problem.attributes["variant"]]
    return run(with_attributes(problem, variant=other))


@fault(
    "singular", "only the right singular vectors kept orthogonal", "variant=", "db", operations="adalora.orthogonality"
)
def _(problem, run):
    results = run(problem)
    return results | ({"db": np.zeros_like(results["db"])} if "db" in results else {})


@fault("singular", "sensitivity without its absolute value", "smoothed", "spread", operations="adalora.importance")
def _(problem, run):
    i, beta = {n: wide(a) for n, a in problem.inputs.items()}, problem.attributes["beta1"]
    return run(problem) | {"sensitivity": beta * i["smoothed"] + (1 - beta) * i["p"] * i["grad"]}


@fault("singular", "the two betas swapped", "beta1=", "beta2=", operations="adalora.importance")
def _(problem, run):
    beta1, beta2 = (problem.attributes[n] for n in ("beta1", "beta2"))
    return run(with_attributes(problem, beta1=beta2, beta2=beta1))


@fault("singular", "uncertainty against the sensitivity before", "smoothed", "spread", operations="adalora.importance")
def _(problem, run):
    i, beta = {n: wide(a) for n, a in problem.inputs.items()}, problem.attributes["beta2"]
    results = run(problem)
    spread = beta * i["spread"] + (1 - beta) * np.abs(np.abs(i["p"] * i["grad"]) - i["smoothed"])
    return results | {"uncertainty": spread, "score": wide(results["sensitivity"]) * spread}


@fault("singular", "score from the sum", "smoothed", "spread", operations="adalora.importance")
def _(problem, run):
    results = run(problem)
    return results | {"score": wide(results["sensitivity"]) + wide(results["uncertainty"])}
