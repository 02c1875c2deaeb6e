"""Calls of a backend's operations, each kept as far as its vjp needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from refpeft.backend import Backend
from refpeft.operation import find


class Call(NamedTuple):
    """An operation that was called, and what its vjp will consume."""

    operation: str
    residuals: Any


class Calls:
    """The operations of a backend, with inputs by name.

    Parameters
    ----------
    backend : Backend
    """

    def __init__(self, backend: Backend):
        self.backend = backend

    def forward(
        self, name: str, inputs: Mapping[str, Any], keep: bool | Sequence[str] = True, /, **attributes
    ) -> tuple[Any, Call]:
        """The operation's output, a tuple where it has several, and the call; without residuals where it is not to be kept, and
        with no more than it takes where ``keep`` names the inputs of which gradients may be wanted.
        """
        operation = find(name)
        arrays = [inputs.get(a.name) for a in operation.signature.inputs]
        attributes = operation.check_attributes(attributes)
        forward = self.backend.implementation(name).forward
        outputs, residuals = forward(*arrays, residuals=keep, **attributes)
        return outputs[0] if len(outputs) == 1 else tuple(outputs), Call(name, residuals)

    def vjp(self, call: Call, cotangent, wanted: Sequence[str]) -> dict[str, Any]:
        """Gradients to the inputs that are wanted, by name; where none is, nothing is computed.

        The cotangent of several outputs is a tuple.
        """
        if not wanted:
            return {}
        implementation = self.backend.implementation(call.operation)
        assert implementation.vjp is not None, f"{call.operation} has no gradient"
        cotangents = cotangent if isinstance(cotangent, tuple) else (cotangent,)
        return dict(zip(wanted, implementation.vjp(call.residuals, cotangents, wanted)))
