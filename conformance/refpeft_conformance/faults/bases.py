"""Mistakes with a sparse matrix between two frozen bases."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, with_inputs

_FROD = {"operations": "frod.*"}


@fault("bases", "places beside the diagonal transposed", "sparse", "places", **_FROD)
def _(problem, run):
    """S for its transpose."""
    row, column = np.divmod(problem.inputs["places"], problem.dims["i"])
    return run(with_inputs(problem, places=column * problem.dims["i"] + row))


@fault("bases", "V for its transpose", "v", "diagonal", **_FROD)
def _(problem, run):
    results = run(with_inputs(problem, v=problem.inputs["v"].T.copy()))
    return results | ({"dv": results["dv"].T} if "dv" in results else {})


@fault("bases", "diagonal left out", "sparse", "diagonal", **_FROD)
def _(problem, run):
    return run(with_inputs(problem, diagonal=np.zeros_like(problem.inputs["diagonal"])))


@fault("bases", "diagonal of ones", "sparse", "diagonal", **_FROD)
def _(problem, run):
    return run(with_inputs(problem, diagonal=np.ones_like(problem.inputs["diagonal"])))


@fault("bases", "elements beside the diagonal left out", "sparse", "diagonal", **_FROD)
def _(problem, run):
    return run(with_inputs(problem, sparse=np.zeros_like(problem.inputs["sparse"])))


@fault("bases", "values at one place overwrite each other", "sparse", "places", **_FROD)
def _(problem, run):
    """Only the last of those that meet counts."""
    places, sparse = problem.inputs["places"], problem.inputs["sparse"].copy()
    last = {int(p): j for j, p in enumerate(places)}
    sparse[[j for j, p in enumerate(places) if last[int(p)] != j]] = 0
    return run(with_inputs(problem, sparse=sparse))


@fault("bases", "gradient to the diagonal from the other side", "ddiagonal", "u", **_FROD)
def _(problem, run):
    results = run(problem)
    return only("ddiagonal", {n: results[n][::-1] for n in ("ddiagonal",) if n in results}, results)


@fault("bases", "gradient to the sparse elements transposed", "dsparse", "places", **_FROD)
def _(problem, run):
    row, column = np.divmod(problem.inputs["places"], problem.dims["i"])
    turned = with_inputs(problem, places=column * problem.dims["i"] + row)
    return only("dsparse", run(turned), run(problem))
