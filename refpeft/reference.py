"""The reference as a backend: float64 sources, each result rounded once to the storage dtype."""

from __future__ import annotations

import functools

import numpy as np

from refpeft.backend import Backend, Implementation
from refpeft.operation import Operation, catalogue
from refpeft.plugins import hookimpl
from refpeft.problem import Problem


@functools.cache
def as_implementation(operation: Operation) -> Implementation:
    """Adapt a reference operation: the residuals are its inputs."""
    from refpeft.golden import stored

    def problem(inputs, attributes, cotangents=None):
        arrays = {a.name: x for a, x in zip(operation.signature.inputs, inputs) if x is not None}
        return Problem.of(operation, arrays, attributes, cotangents or {})

    def forward(*inputs, residuals=True, **attributes):
        results = stored(problem(inputs, attributes))
        return tuple(results[o.name] for o in operation.outputs), (inputs, attributes) if residuals else None

    def vjp(residuals, cotangents, wanted):
        inputs, attributes = residuals
        results = stored(problem(inputs, attributes, dict(zip(operation.cotangents, cotangents))))
        return tuple(results["d" + name] for name in wanted)

    return Implementation(forward, vjp if operation.has_vjp else None)


class ReferenceBackend(Backend):
    """refpeft's own NumPy reference. It is certified by `Exact`, double-double and torch's autograd, not against itself."""

    name = "reference"
    summary = "the NumPy reference itself"
    training = True

    def versions(self):
        return {"numpy": np.__version__}

    def operations(self):
        return {name: as_implementation(operation) for name, operation in catalogue().items()}

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array


@hookimpl
def refpeft_backends():
    """The reference, as any plugin would bring a backend."""
    return [ReferenceBackend()]
