"""Any program as a backend: what refpeft is told about it, and how it is asked."""

from __future__ import annotations

import functools
import math
import shlex
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from refpeft import plugins
from refpeft.backend import Backend, Implementation, withholding
from refpeft.errors import CapabilityError, RefpeftError
from refpeft.formats.safetensors import Archive, dumps
from refpeft.operation import Operation, find
from refpeft_process.program import Program
from refpeft_process.protocol import Description, description, request_metadata, results

HEADER_LIMIT = 1 << 20
"""Bytes that an answer may take beside its tensors."""

_LARGEST_ITEM = 8


class ProcessBackend(Backend):
    """A program that answers ``refpeft/1`` requests on standard input and output.

    It is started at the first request, lives across requests, and is started anew after one that ended it. One
    instance may be used from several threads; pickled or forked, each process runs a program of its own.

    Parameters
    ----------
    command : str
        The program and its arguments, split as a POSIX shell would, but run without one: no variables, no globbing.
    timeout : float
        Seconds that one request may take; 0 for no limit.

    Attributes
    ----------
    name : str
        ``process`` until the program has been asked, from then on what it calls itself.
    unknown : tuple of str
        A sentence for each operation or dtype that the program lists and this refpeft does not know: it is left out.

    Raises
    ------
    CapabilityError
        If the command is not closed in its quotes, or the timeout is negative or not finite.
    """

    def __init__(self, command: str, timeout: float = 60.0):
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise CapabilityError(f"the command {command!r} cannot be split into arguments: {error}.") from None
        if not 0 <= timeout < math.inf:
            raise CapabilityError(
                f"the timeout of program {command!r} must be a number of seconds, or 0 for none, got {timeout}."
            )
        self.command, self.timeout = command, float(timeout)
        self._program: Program | None = None
        self._description: Description | None = None
        self._lock = threading.Lock()

    def __reduce__(self):
        return ProcessBackend, (self.command, self.timeout)

    @property
    def name(self) -> str:
        return self._description.name if self._description else "process"

    @property
    def summary(self) -> str:
        return f"the program {self.command}" if self.command else "any program that speaks refpeft/1"

    @property
    def deterministic(self) -> bool:
        return self._described.deterministic

    @property
    def training(self) -> bool:
        return self._described.training

    def unavailable(self):
        """Why the program cannot be asked: there is none, it does not start, or it does not describe itself."""
        try:
            self.versions()
        except RefpeftError as error:
            return str(error)
        return None

    def versions(self):
        return {self._described.name: self._described.version}

    @property
    def unknown(self) -> tuple[str, ...]:
        return self._described.unknown

    def precision(self, dtype):
        return self._described.precisions.get(dtype)

    @functools.cached_property
    def _implementations(self) -> dict[str, Implementation]:
        return {name: self._implementation(find(name), vjp) for name, vjp in self._described.operations.items()}

    def operations(self):
        return self._implementations

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array

    def close(self) -> None:
        """Let the program go; the next request starts another."""
        with self._lock:
            self._forget()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def _described(self) -> Description:
        if self._description is None:
            said = description(self._ask("describe", {}, request_metadata("describe"), 0))
            taken = {name.lower() for name, backend in plugins.backends().items() if backend is not self}
            if said.name.lower() in taken:
                raise CapabilityError(
                    f"the program {self.command!r} calls itself {said.name!r}, as a registered backend is called: "
                    "its certificate would be taken for that backend's."
                )
            self._description = said
        return self._description

    def _implementation(self, operation: Operation, has_vjp: bool) -> Implementation:
        frozen = self._described.frozen[operation.name]
        names = [a.name for a in operation.signature.inputs]

        def forward(*inputs, residuals=True, **attributes):
            arrays = {name: np.asarray(x) for name, x in zip(names, inputs) if x is not None}
            outputs = self._compute(operation, "output", [o.name for o in operation.outputs], arrays, {}, attributes)
            return outputs, (arrays, attributes) if residuals else None

        def vjp(residuals, cotangents, wanted):
            arrays, attributes = residuals
            given = dict(zip(operation.cotangents, map(np.asarray, cotangents)))
            return self._compute(operation, "gradient", wanted, arrays, given, attributes)

        return Implementation(forward, withholding(vjp, frozen) if has_vjp else None, frozen=frozen)

    def _compute(
        self,
        operation: Operation,
        kind: str,
        names: Sequence[str],
        inputs: Mapping[str, np.ndarray],
        cotangents: Mapping[str, np.ndarray],
        attributes: Mapping,
    ) -> tuple[np.ndarray, ...]:
        """One ``forward`` (outputs) or ``vjp`` (gradients) request; every attribute is sent, defaults filled in."""
        attributes = operation.check_attributes(attributes)
        dims = operation.check_shapes({name: array.shape for name, array in inputs.items()}, attributes)
        floating = [inputs[a.name].dtype.name for a in operation.differentiable if a.name in inputs]
        stated = [attributes["dtype"]] if "dtype" in attributes else []
        dtype = (floating + stated + list(operation.dtypes))[0]
        request = "forward" if kind == "output" else "vjp"
        what = f"{request} of {operation.name} in {dtype}"
        tensors = {f"input.{n}": a for n, a in inputs.items()} | {f"cotangent.{n}": a for n, a in cotangents.items()}
        metadata = request_metadata(request, operation.name, dtype, attributes, names if kind == "gradient" else ())
        shapes = {o.name: operation.signature.shape(o, dims) for o in operation.outputs}
        shapes = shapes if kind == "output" else {name: inputs[name].shape for name in names}
        answer = self._ask(what, tensors, metadata, sum(map(math.prod, shapes.values())))
        return results(answer, what, kind, names)

    def _ask(self, what: str, tensors: Mapping, metadata: Mapping[str, str], elements: int) -> Archive:
        """One exchange; the answer may hold ``elements`` numbers of any dtype."""
        if not self._arguments:
            raise CapabilityError("the process backend needs a program: give one with --command or REFPEFT_COMMAND.")
        request = dumps(tensors, metadata)
        with self._lock:
            if self._program is not None and not self._program.usable:
                self._forget()
            if self._program is None:
                self._program = Program(self._arguments)
            return self._program.ask(what, request, HEADER_LIMIT + _LARGEST_ITEM * elements, self.timeout)

    def _forget(self) -> None:
        if self._program is not None:
            self._program.close()
            self._program = None
