"""Mistakes with rows of a table that are trained in the place of its own."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_inputs

_ALL = {"operations": "trainable_tokens.*"}


@fault("tokens", "vectors added to the rows that they replace", "trained", **_ALL)
def _(problem, run):
    i = problem.inputs
    return run(with_inputs(problem, trained=wide(i["trained"]) + wide(i["weight"])[i["tokens"]]))


@fault("tokens", "vectors of the tokens in another order", "trained", **_ALL)
def _(problem, run):
    return run(with_inputs(problem, tokens=np.roll(problem.inputs["tokens"], 1)))


@fault("tokens", "the table's own rows", "trained", **_ALL)
def _(problem, run):
    """As in a tied output layer that does not know of the new rows."""
    return run(with_inputs(problem, trained=problem.inputs["weight"][problem.inputs["tokens"]]))


@fault("tokens", "rows that are replaced get a gradient", "dweight", "trained", **_ALL)
def _(problem, run):
    results = run(problem)
    if "dweight" not in results:
        return results
    dweight, tokens = results["dweight"].copy(), problem.inputs["tokens"]
    dweight[tokens] = results["dtrained"]
    return results | {"dweight": dweight}


@fault("tokens", "only the first token is trained", "dtrained", **_ALL)
def _(problem, run):
    results = run(problem)
    if "dtrained" not in results:
        return results
    first = np.arange(len(results["dtrained"]))[:, None] == 0
    return results | {"dtrained": np.where(first, wide(results["dtrained"]), 0.0)}
