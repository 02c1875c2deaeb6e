"""Faults: named mistakes that can be made to any backend. They are the kit's asset, and have three uses: the smoke stage of every
certification, the kill rate, and the failure message (*the output lies within the budget of fault ... and of no other*).

A fault is a function (problem, run) -> results, where ``run`` is the honest call from a problem to its results by name. It
changes the problem, the results, or both. What a fault needs (an attribute, an input) is read off the signature, so it applies to
every operation that has it.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from refpeft.backend import Backend, Implementation
from refpeft.errors import AttributeValueError, DomainError, PluginError, ShapeError
from refpeft.numerics.formats import as_format, store
from refpeft.operation import Operation
from refpeft.problem import Problem
from refpeft_conformance.around import Around

Results = dict[str, np.ndarray]
Run = Callable[[Problem], Results]


@dataclass(frozen=True)
class Fault:
    """A mistake.

    Attributes
    ----------
    name : str
    family : str
        The class of mistakes it belongs to.
    transform : callable
        (problem, run) -> results.
    needs : tuple of str
        What the operation must have: inputs or outputs by name, a gradient as ``"dNAME"``, attributes as ``"NAME="``, dims as
        ``"[NAME]"``.
    operations : str
        Pattern of operation names.
    dtypes : tuple of str
        Dtypes in which it is a mistake.
    explains : bool
        Whether its results on the reference can be recognised in a backend's output.
    equivalent : dict of str to str
        Operations (patterns) where it changes nothing that the spec fixes, each with the argument why.
    where : callable
        Whether an operation that has all it needs is of the form that it is a mistake in.
    """

    name: str
    family: str
    transform: Callable[[Problem, Run], Results]
    needs: tuple[str, ...]
    operations: str
    dtypes: tuple[str, ...]
    explains: bool
    equivalent: dict[str, str]
    where: Callable[[Operation], bool]

    def applies(self, operation: Operation, dtype: str) -> bool:
        """Whether it can be made to the operation in this dtype, and is a mistake there."""
        return (
            dtype in self.dtypes
            and fnmatch.fnmatchcase(operation.name, self.operations)
            and _parts(operation).issuperset(self.needs)
            and not any(fnmatch.fnmatchcase(operation.name, pattern) for pattern in self.equivalent)
            and self.where(operation)
        )


@functools.cache
def _parts(operation: Operation) -> frozenset[str]:
    """What an operation has, in the words of a fault's needs."""
    has = {a.name for a in (*operation.signature.inputs, *operation.outputs)} | set(operation.gradients)
    has |= {f"{name}=" for name in operation.attributes} | {f"[{name}]" for name in operation.signature.dims}
    return frozenset(has)


def everywhere(operation: Operation) -> bool:
    """Where a fault is a mistake that says no more of it."""
    return True


_FAULTS: dict[str, Fault] = {}
ALL_DTYPES = ("float64", "float32", "bfloat16", "float16")
REFUSED = (ShapeError, DomainError, AttributeValueError)
"""What is raised where a fault makes of a problem none of the operation's."""


def fault(
    family: str,
    name: str,
    *needs: str,
    operations: str = "*",
    dtypes: tuple[str, ...] = ALL_DTYPES,
    explains: bool = True,
    equivalent: dict[str, str] | None = None,
    where: Callable[[Operation], bool] = everywhere,
):
    """Declare the decorated function as a fault."""

    def declare(transform):
        if name in _FAULTS:
            raise PluginError(f"fault {name!r} is declared twice.")
        _FAULTS[name] = Fault(name, family, transform, needs, operations, dtypes, explains, equivalent or {}, where)
        return transform

    return declare


def faults() -> dict[str, Fault]:
    """All faults by name; each module of this package is a family."""
    _import_families()
    return dict(sorted(_FAULTS.items()))


@functools.cache
def _import_families() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def faults_of(operation: Operation, dtype: str) -> list[Fault]:
    """The faults that can be made to an operation in a dtype."""
    return [f for f in faults().values() if f.applies(operation, dtype)]


def honest(problem: Problem, run: Run) -> Results:
    """No fault: what the wrapper around a backend does when it is switched off."""
    return run(problem)


HONEST = Fault("none", "none", honest, (), "*", ALL_DTYPES, False, {}, everywhere)


class Faulty(Around):
    """A backend to which a fault is made at its boundary.

    Parameters
    ----------
    inner : Backend
    fault : Fault
    """

    def __init__(self, inner: Backend, fault: Fault):
        super().__init__(inner)
        self.fault = fault
        self.summary = f"{inner.name} with the fault {fault.name!r}"

    def around(self, operation, inner):
        return self._wrapped(operation, inner) if self._touches(operation, inner) else inner

    def _touches(self, operation: Operation, inner: Implementation) -> bool:
        """Whether the fault is one there: not in a gradient that the backend does not give."""
        given = not {"d" + name for name in inner.frozen} & set(self.fault.needs)
        return given and any(self.fault.applies(operation, dtype) for dtype in operation.dtypes)

    def _made(self, problem: Problem, run: Run) -> Results:
        """The faulty results; honest ones where it is none in this dtype, or makes of the problem none of the operation's."""
        if not self.fault.applies(problem.operation, problem.dtype):
            return run(problem)
        try:
            return self.fault.transform(problem, run)
        except REFUSED:
            return run(problem)

    def _wrapped(self, operation: Operation, inner: Implementation) -> Implementation:
        def host(array):
            return None if array is None else self.inner.to_numpy(array)

        def forward(*inputs, residuals=True, **attributes):
            device = next((self.inner.device_of(a) for a in inputs if a is not None), "cpu")
            problem = _problem(operation, [host(a) for a in inputs], attributes)
            results = self._made(problem, lambda p: self._honest(inner, p, device))
            outputs = tuple(
                self.inner.asarray(_typed(results[o.name], problem, o.name), device) for o in operation.outputs
            )
            return outputs, (problem, device)

        def vjp(residuals, cotangents, wanted):
            problem, device = residuals
            problem = problem.with_cotangents(dict(zip(operation.cotangents, map(host, cotangents))))
            results = self._made(problem, lambda p: self._honest(inner, p, device))
            return tuple(
                None if n in inner.frozen else self.inner.asarray(_typed(results["d" + n], problem, "d" + n), device)
                for n in wanted
            )

        return replace(inner, forward=forward, vjp=vjp if inner.vjp else None)

    def _honest(self, inner: Implementation, problem: Problem, device: str) -> Results:
        arrays = [None if x is None else self.inner.asarray(x, device) for x in problem.positional]
        outputs, residuals = inner.forward(*arrays, residuals=bool(problem.cotangents), **problem.attributes)
        results = {o.name: self.inner.to_numpy(y) for o, y in zip(problem.operation.outputs, outputs)}
        if problem.cotangents:
            cotangents = [self.inner.asarray(problem.cotangents[n], device) for n in problem.operation.cotangents]
            wanted = [n for n in problem.wanted if n not in inner.frozen]
            gradients = inner.vjp(residuals, cotangents, wanted)
            results |= {"d" + n: self.inner.to_numpy(g) for n, g in zip(wanted, gradients)}
        return results


def _problem(operation: Operation, inputs, attributes) -> Problem:
    """The call as a problem, its arrays shared with the caller."""
    named = {a.name: x for a, x in zip(operation.signature.inputs, inputs) if x is not None}
    return Problem.of(operation, named, attributes)


def _typed(result: np.ndarray, problem: Problem, name: str) -> np.ndarray:
    """A result that the fault computed in float64, stored in the dtype it should have."""
    wanted = problem.result_specs.get(name, (None, problem.dtype))[1]
    if result.dtype == np.float64 and wanted not in ("float64",):
        return store(result, as_format(wanted)) if wanted in ALL_DTYPES else result.astype(wanted)
    return np.asarray(result, order="C")


def wide(array: np.ndarray) -> np.ndarray:
    """An array as float64, for faults that calculate."""
    return np.asarray(array).astype(np.float64)


def with_inputs(problem: Problem, **changed) -> Problem:
    """The problem with some inputs replaced, stored in their own dtypes."""
    arrays = {
        n: store(a, as_format(problem.dtype)) if np.asarray(a).dtype == np.float64 else a for n, a in changed.items()
    }
    return problem.replace(inputs=problem.inputs | arrays)


def with_attributes(problem: Problem, **changed) -> Problem:
    """The problem with some attributes replaced."""
    return problem.replace(attributes=problem.attributes | changed)


def only(name: str, changed: Results, honest: Results) -> Results:
    """The honest results with one of them changed, where it is there."""
    return honest | ({name: changed[name]} if name in changed else {})
