"""Problems: one call of an operation as data, with inputs, attributes and cotangents. It is what golden files,
counterexamples and the process protocol all hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from refpeft.errors import AttributeValueError, DtypeError, FormatError, ShapeError
from refpeft.numerics.formats import as_format
from refpeft.operation import Operation, find


@dataclass(frozen=True, eq=False)
class Problem:
    """An operation applied to given arrays.

    Attributes
    ----------
    operation : Operation
    dtype : str
        NumPy's name of the floating-point dtype.
    inputs : dict of str to ndarray
        Present inputs by name, in storage dtypes.
    attributes : dict
        All attributes, defaults filled in.
    cotangents : dict of str to ndarray
        By cotangent name (``dy``); empty for a forward-only problem.
    dims : dict
        Dims and attributes by name.
    """

    operation: Operation
    dtype: str
    inputs: dict[str, np.ndarray]
    attributes: dict
    cotangents: dict[str, np.ndarray] = field(default_factory=dict)
    dims: dict = field(default_factory=dict)

    @classmethod
    def of(
        cls, operation, inputs: Mapping, attributes: Mapping, cotangents: Mapping | None = None, dtype=None
    ) -> Problem:
        """Check everything against the signature and build the problem.

        Parameters
        ----------
        operation : str or Operation
        inputs, attributes, cotangents : mappings by name
        dtype : str, optional
            Where not given, that of the first input with the problem's dtype. An operation whose definition depends on it
            has an attribute ``dtype``: either may be given, and the problem's attributes hold it.

        Raises
        ------
        RefpeftError
            Shape, dtype, attribute or domain errors, one sentence each.
        """
        operation = find(operation)
        arrays = {name: np.asarray(a) for name, a in inputs.items() if a is not None}
        dtype = _dtype_of(operation, arrays, attributes, cotangents or {}, dtype)
        stated = {"dtype": dtype} if "dtype" in operation.attributes else {}
        checked, dims = operation.check(arrays, {**attributes, **stated}, dtype)
        problem = cls(operation, dtype, arrays, checked, {}, dims)
        return problem.with_cotangents(cotangents or {})

    def with_cotangents(self, cotangents: Mapping) -> Problem:
        """The same problem with cotangents, checked; an empty mapping makes it forward-only."""
        specs = {"d" + name: spec for name, spec in self.operation.output_specs(self.dims, self.dtype).items()}
        arrays = {name: np.asarray(a) for name, a in cotangents.items()}
        for name, array in arrays.items():
            if name not in self.operation.cotangents:
                raise AttributeValueError(
                    f"{self.operation.name}: unknown cotangent {name!r}; it takes {list(self.operation.cotangents)}."
                )
            shape, dtype = specs[name]
            if array.shape != shape:
                raise ShapeError(
                    f"{self.operation.name}: {name} has shape {array.shape}, but its output has shape {shape}."
                )
            if array.dtype.name != dtype:
                raise DtypeError(f"{self.operation.name}: {name} has dtype {array.dtype.name} but {dtype} is needed.")
        if arrays and set(arrays) != set(self.operation.cotangents):
            missing = sorted(set(self.operation.cotangents) - set(arrays))
            raise AttributeValueError(f"{self.operation.name}: cotangent {missing[0]} is missing.")
        return replace(self, cotangents=arrays)

    @property
    def positional(self) -> list:
        """The inputs in the signature's order, None for absent ones."""
        return [self.inputs.get(a.name) for a in self.operation.signature.inputs]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the inputs a gradient exists for: differentiable and present."""
        return tuple(a.name for a in self.operation.differentiable if a.name in self.inputs) if self.cotangents else ()

    @property
    def result_specs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of everything a backend returns: outputs, and gradients if there are cotangents."""
        gradients = {"d" + n: (self.inputs[n].shape, self.dtype) for n in self.wanted}
        return self.operation.output_specs(self.dims, self.dtype) | gradients

    def replace(self, **changes) -> Problem:
        """A checked copy with other inputs, attributes or cotangents."""
        parts = {"inputs": self.inputs, "attributes": self.attributes, "cotangents": self.cotangents} | changes
        return Problem.of(self.operation, parts["inputs"], parts["attributes"], parts["cotangents"], self.dtype)

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Tensors and metadata for a safetensors file: ``input.NAME``, ``cotangent.NAME``; operation, dtype, attributes."""
        import json

        tensors = {f"input.{n}": a for n, a in self.inputs.items()} | {
            f"cotangent.{n}": a for n, a in self.cotangents.items()
        }
        return tensors, {
            "operation": self.operation.name,
            "dtype": self.dtype,
            "attributes": json.dumps(self.attributes, sort_keys=True),
        }

    @classmethod
    def unpack(cls, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Problem:
        """The problem that `pack` wrote.

        Raises
        ------
        FormatError
            If the metadata does not name an operation, dtype and attributes.
        """
        import json

        try:
            attributes = json.loads(metadata["attributes"])
            operation, dtype = metadata["operation"], metadata["dtype"]
        except (KeyError, ValueError, RecursionError) as error:
            raise FormatError(f"a problem's metadata needs operation, dtype and attributes (JSON): {error}.") from error
        if not isinstance(attributes, dict):
            raise FormatError(f"a problem's attributes must be a JSON object, but are {attributes!r}.")
        inputs = {n.removeprefix("input."): a for n, a in tensors.items() if n.startswith("input.")}
        cotangents = {n.removeprefix("cotangent."): a for n, a in tensors.items() if n.startswith("cotangent.")}
        return cls.of(operation, inputs, attributes, cotangents, dtype)


def _dtype_of(operation: Operation, arrays: Mapping, attributes: Mapping, cotangents: Mapping, dtype) -> str:
    """As given; else that of the first floating-point input; else the attribute's default, or the only dtype there is."""
    attribute = operation.attributes.get("dtype")
    stated = attributes.get("dtype") if attribute else None
    floating = [arrays[a.name] for a in operation.differentiable if a.name in arrays] + list(cotangents.values())
    candidates = [dtype, stated, *(np.asarray(x).dtype.name for x in floating)]
    if attribute and not attribute.required:
        candidates.append(attribute.default)
    if len(operation.dtypes) == 1:
        candidates.append(operation.dtypes[0])
    dtype = next((c for c in candidates if c is not None), None)
    if dtype is None:
        raise DtypeError(f"{operation.name}: no input fixes the floating-point dtype, so dtype must be given.")
    name = as_format(dtype).name
    if stated is not None and as_format(stated).name != name:
        raise DtypeError(f"{operation.name}: the problem's dtype is {name}, but its attribute dtype says {stated}.")
    if name not in operation.dtypes:
        raise DtypeError(f"{operation.name} is defined for {', '.join(operation.dtypes)}, but {name} came.")
    return name
