"""Laws of layers made of Kronecker products."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law


@law("compacter.phm", "the layer is the linear layer of the dense sum", regime="exact", needs=("nn.linear",))
def _(subject, problem, observed):
    """On small integers the sum of ``numpy.kron(A_i, W_i)`` has no rounding, and nn.linear with it gives the same."""
    i = problem.inputs
    terms = [np.kron(a.astype(float), w.astype(float)) for a, w in zip(i["rule"], i["weights"])]
    arrays = {"x": i["x"], "weight": np.ascontiguousarray(sum(terms).T).astype(i["x"].dtype)}
    dense = Problem.of("nn.linear", arrays | {n: i[n] for n in ("bias",) if n in i}, {}, {}, problem.dtype)
    equal("dense", subject.run(problem.replace(cotangents={}))["y"], subject.run(dense)["y"], observed)


@law("compacter.linear", "factored weights are their products", regime="exact", needs=("compacter.phm",))
def _(subject, problem, observed):
    i = problem.inputs
    products = i["left"].astype(float) @ i["right"].astype(float)
    arrays = {"x": i["x"], "rule": i["rule"], "weights": products.astype(i["x"].dtype)}
    dense = Problem.of("compacter.phm", arrays | {n: i[n] for n in ("bias",) if n in i}, {}, {}, problem.dtype)
    equal("products", subject.run(problem.replace(cotangents={}))["y"], subject.run(dense)["y"], observed)
