"""The matrices of a real model as inputs: real spectra, outliers and scales in the linear and quantisation checks."""

from __future__ import annotations

import hashlib

import numpy as np

from refpeft.formats.weights import matrices
from refpeft.numerics.formats import as_format, store
from refpeft.problem import Problem
from refpeft_conformance.checks import Check


def checks(operation, dtype, weights: str):
    """One claim for an operation that takes a weight, over every matrix that ``weights`` (FILE[:GLOB]) names."""
    if dtype == "float64" or "weight" not in {a.name for a in operation.signature.inputs} or "conv" in operation.name:
        return

    def drawn(subject):
        for name, matrix in matrices(weights):
            yield on_matrix(operation, name, np.asarray(matrix), dtype)

    yield check(operation, dtype, drawn)


def check(operation, dtype, problems) -> Check:
    """The claim over given problems."""

    def examine(subject, problem, observed):
        subject.hold(problem, observed, gradients=False)

    return Check(operation, dtype, "rounded", "outputs within budget on the weights of a real model", examine, problems)


def on_matrix(operation, name: str, matrix: np.ndarray, dtype: str) -> Problem:
    """A problem of the operation with this weight: two rows of inputs, rank 8, seeded by the matrix's name."""
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    format = as_format(dtype)
    argument = next(a for a in operation.signature.inputs if a.name == "weight")
    weight = matrix if len(argument.dims) == 2 or argument.star else matrix.reshape(-1)
    rows, columns = matrix.shape
    sizes = {"o": rows, "i": columns, "r": 8, "n": (2,)}
    required = [a for a in operation.signature.inputs if not a.optional and a.name != "weight"]
    inputs = {a.name: store(random.normal(size=operation.signature.shape(a, sizes)), format) for a in required}
    attributes = {"scaling": 2.0} if "scaling" in operation.attributes else {}
    return Problem.of(operation, inputs | {"weight": store(weight.astype(np.float64), format)}, attributes, {}, dtype)
