"""The whole catalogue as an honest backend: any operation, present or future, from its own source."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from refpeft.backend import Backend, Implementation
from refpeft.numerics.formats import FORMATS, as_format, store
from refpeft.operation import Operation, catalogue
from refpeft_conformance.honest.array import STYLES, Arithmetic, Honest
from refpeft_conformance.honest.summation import ORDERS


class HonestBackend(Backend):
    """Every operation in one order of summation and one style.

    Parameters
    ----------
    order : str
        One of `ORDERS`.
    style : str
        One of `STYLES`.
    """

    def __init__(self, order: str, style: str):
        self.order, self.style = order, style
        self.name = f"honest-{order}-{style}"
        self.summary = f"the sources in real arithmetic, sums {order}, intermediates {style}"

    def operations(self):
        return self._implementations

    @cached_property
    def _implementations(self) -> dict[str, Implementation]:
        return {name: self._implementation(operation) for name, operation in catalogue().items()}

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array

    def _implementation(self, operation: Operation) -> Implementation:
        def forward(*inputs, residuals=True, **attributes):
            arithmetic = Arithmetic(_storage(operation, inputs, attributes), self.order, self.style)
            arrays = [_brought(x, arithmetic) for x in inputs]
            numbers = {n: _brought(v, arithmetic) if isinstance(v, float) else v for n, v in attributes.items()}
            shapes = {a.name: x.shape for a, x in zip(operation.signature.inputs, inputs) if x is not None}
            specs = operation.output_specs(operation.check_shapes(shapes, attributes), arithmetic.storage.name)
            with np.errstate(all="ignore"):
                outputs = operation.forward(*arrays, **numbers)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                results = tuple(_returned(y, *specs[o.name]) for o, y in zip(operation.outputs, outputs))
            return results, (arithmetic, arrays, numbers)

        def vjp(residuals, cotangents, wanted):
            arithmetic, arrays, numbers = residuals
            with np.errstate(all="ignore"):
                gradients = operation.backward(*(_brought(dy, arithmetic) for dy in cotangents), *arrays, **numbers)
                named = dict(zip((a.name for a in operation.differentiable), gradients))
                shapes = {a.name: x.shape for a, x in zip(operation.signature.inputs, arrays) if x is not None}
                return tuple(_returned(named[n], shapes[n], arithmetic.storage.name) for n in wanted)

        return Implementation(forward, vjp if operation.has_vjp else None, source="shared")


def honest_backends() -> list[HonestBackend]:
    """Each order in each style."""
    return [HonestBackend(order, style) for order in ORDERS for style in STYLES]


def _brought(array, arithmetic: Arithmetic) -> Honest | None:
    return None if array is None else Honest(np.asarray(array), arithmetic)


def _returned(result, shape, dtype: str) -> np.ndarray:
    value = result.value if isinstance(result, Honest) else np.asarray(result)
    value = np.broadcast_to(value, shape)
    return store(value, as_format(dtype)) if dtype in FORMATS else value.astype(dtype)


def _storage(operation: Operation, inputs, attributes):
    """The format of the problem: as an attribute says, or that of an input that has it."""
    own = [x.dtype for a, x in zip(operation.signature.inputs, inputs) if x is not None and a.dtype is None]
    return as_format(attributes.get("dtype") or (own[0] if own else operation.dtypes[0]))
