"""The reference's sources on the arrays of an interpretation, as a backend: what runs on backends, a model in training say,
is then interpreted as a whole."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from refpeft.backend import Backend, Implementation
from refpeft.numerics.perturbed import plain
from refpeft.operation import Operation, catalogue


class Interpreted(Backend):
    """A backend whose arrays are those of an interpretation, whatever the dtype that they came in.

    Parameters
    ----------
    array, scalar : callable
        What brings a floating-point array, and a float attribute, into the interpretation.
    """

    name = "interpreted"

    def __init__(self, array: Callable, scalar: Callable):
        self._array, self._scalar = array, scalar

    @functools.cached_property
    def _implementations(self) -> dict[str, Implementation]:
        return {name: self._implementation(operation) for name, operation in catalogue().items()}

    def operations(self):
        return self._implementations

    def asarray(self, array, device):
        return array if array.dtype.kind in "iub" else self._array(array)

    def to_numpy(self, array):
        return array if isinstance(array, np.ndarray) else plain(array)

    def _implementation(self, operation: Operation) -> Implementation:
        def forward(*inputs, residuals=True, **attributes):
            attributes = operation.check_attributes(attributes)
            brought = {n: self._scalar(v) if isinstance(v, float) else v for n, v in attributes.items()}
            outputs = operation.forward(*inputs, **brought)
            return outputs if isinstance(outputs, tuple) else (outputs,), (inputs, brought)

        def vjp(residuals, cotangents, wanted):
            inputs, brought = residuals
            gradients = operation.backward(*cotangents, *inputs, **brought)
            named = dict(zip((a.name for a in operation.differentiable), gradients))
            return tuple(named[name] for name in wanted)

        return Implementation(forward, vjp if operation.has_vjp else None)
