"""Laws of trainable tokens."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, merged_layer


def _trained(problem):
    return np.isin(np.arange(problem.dims["v"]), problem.inputs["tokens"])


@law("trainable_tokens.merge", "rows that are not trained keep every bit")
def _(subject, problem, observed):
    kept = ~_trained(problem)
    merged = subject.run(problem.replace(cotangents={}))["merged"]
    equal("other rows", merged[kept], problem.inputs["weight"][kept], observed)


@law("trainable_tokens.embedding", "a trained token looks up its own vector, another one its row of the table")
def _(subject, problem, observed):
    """Token by token; each is trained once, or the problem says nothing."""
    tokens, ids = problem.inputs["tokens"], problem.inputs["ids"]
    if len(np.unique(tokens)) < len(tokens):
        return
    expected = problem.inputs["weight"].copy()
    expected[tokens] = problem.inputs["trained"]
    equal("the look-up", subject.run(problem.replace(cotangents={}))["y"], expected[ids], observed)


def _forgets(operation: str):
    @law(operation, "what stood in a trained row reaches nothing", gradients=True)
    def _(subject, problem, observed):
        weight = problem.inputs["weight"].copy()
        weight[_trained(problem)] = np.nan
        spoiled = problem.replace(inputs=problem.inputs | {"weight": weight})
        first, second = subject.run(problem), subject.run(spoiled)
        for name in first:
            equal(name, second[name], first[name], observed)
        rows = first["dweight"][_trained(problem)]
        equal("the gradient to replaced rows", rows, np.zeros_like(rows), observed)


for _operation in ("trainable_tokens.embedding", "trainable_tokens.linear"):
    _forgets(_operation)


@law(
    "trainable_tokens.merge",
    "the merged table is the tied layer's",
    regime="exact",
    needs=("nn.linear", "trainable_tokens.linear"),
)
def _(subject, problem, observed):
    merged_layer(subject, problem, "trainable_tokens.linear", observed)
