"""The subject of a certification: one backend on one device, run on problems while the reference is poisoned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from hypothesis.strategies import SearchStrategy

from refpeft.backend import Backend
from refpeft.comparison import Comparison, compare
from refpeft.golden import answer
from refpeft.numerics.precision import Precision, rounding_model
from refpeft.operation import Operation
from refpeft.problem import Problem
from refpeft.provenance import poisoned
from refpeft_conformance import strategies
from refpeft_conformance.intact import disturbance
from refpeft_conformance.verdict import NoGradient, Observation, Outside, Violation
from refpeft_conformance.worker import said, timed


class Results(dict):
    """What a backend gave, by name; a gradient that is not there is one that it declares not to give."""

    def __missing__(self, name):
        raise NoGradient(f"the backend gives no gradient to {name.removeprefix('d')}")


def require_form(name: str, spec: tuple[tuple[int, ...], str], results: dict[str, np.ndarray]) -> None:
    """Refuse a result of another shape or dtype than it must have.

    Raises
    ------
    Violation
    """
    got, (shape, dtype) = results[name], spec
    if got.shape != shape or got.dtype.name != dtype:
        raise Violation(f"{name} is {got.dtype.name}{list(got.shape)} but must be {dtype}{list(shape)}", results)


@dataclass(frozen=True)
class Subject:
    """A backend under certification.

    Attributes
    ----------
    backend : Backend
    device : str
    gradients : bool
        Whether gradients are asked of it at all.
    loop : str
        The mistake that the loop of a training makes, see `refpeft_conformance.loop_faults`; empty for none.
    turned_away : callable
        Told the reason each time that the backend does not take what is about to be drawn.
    """

    backend: Backend
    device: str = "cpu"
    gradients: bool = True
    loop: str = ""
    turned_away: Callable[[str], None] = lambda reason: None

    def precision(self, dtype: str) -> Precision | None:
        """What the backend declares for the dtype; None where it does not have it."""
        return self.backend.precision(dtype)

    def guarded(self, function, *arguments, shared: bool = False, **keywords):
        """Call into the backend while the reference is poisoned.

        Raises
        ------
        Violation
            If the backend raises, asks the interpreter to exit, or leaves the floating-point unit in another mode.
        """
        guard = nullcontext() if self.backend.name == "reference" else poisoned(self.backend.name, shared=shared)
        try:
            with guard, timed():
                result = function(*arguments, **keywords)
        except (Exception, SystemExit) as error:
            raise Violation(f"the backend raised {said(error)}") from error
        if wrong := disturbance():
            raise Violation(f"the backend left the process in a state in which {wrong}")
        return result

    def arrays(self, problem: Problem, layout=np.array) -> list:
        """Copies of the problem's inputs as the backend's own arrays, None for absent ones.

        ``layout`` arranges each on the host first.
        """
        return [
            None if x is None else self.guarded(self.backend.asarray, layout(x), self.device)
            for x in problem.positional
        ]

    def cotangents(self, problem: Problem) -> list:
        """Copies of the problem's cotangents as the backend's own arrays."""
        names = problem.operation.cotangents if problem.cotangents else ()
        return [self.guarded(self.backend.asarray, np.array(problem.cotangents[n]), self.device) for n in names]

    def host(self, array) -> np.ndarray:
        """The backend's array as NumPy's.

        Raises
        ------
        Violation
            If it is none.
        """
        result = self.guarded(self.backend.to_numpy, array)
        if not isinstance(result, np.ndarray):
            raise Violation(f"the backend returned {type(result).__name__}, where an array is due")
        return np.asarray(result)

    def counted(self, operation: str, before: Mapping[str, int] | None = None) -> dict[str, int]:
        """What the backend counts for the operation: so far, or since it was ``before``; names that stayed are left out."""
        tally, before = self.backend.tally(operation), before or {}
        return {name: n - before.get(name, 0) for name, n in sorted(tally.items()) if n != before.get(name, 0)}

    def differentiates(self, operation: str) -> bool:
        """Whether gradients of the operation are asked of the backend, and it gives any."""
        return self.gradients and self.backend.implementation(operation).vjp is not None

    def asked(self, problem: Problem) -> Problem:
        """The problem as it is put to the backend: without cotangents where it is asked for no gradients."""
        if not problem.cotangents or self.differentiates(problem.operation.name):
            return problem
        return problem.with_cotangents({})

    def problems(self, operation: Operation, dtype: str, **how) -> SearchStrategy[Problem]:
        """`refpeft_conformance.strategies.problems` at the backend's precision, of those that it takes.

        It is asked before the arrays are drawn and the answer is worked out: many a library takes one problem in a hundred.
        """

        def taken(shapes, attributes):
            if reason := self._outside(operation.name, dtype, shapes, attributes):
                self.turned_away(reason)
            return not reason

        return strategies.problems(operation, dtype=dtype, precision=self.precision(dtype), taken=taken, **how)

    def outside(self, problem: Problem) -> str:
        """Why the backend says that it does not take the problem; empty if it does."""
        shapes = {name: array.shape for name, array in problem.inputs.items()}
        return self._outside(problem.operation.name, problem.dtype, shapes, problem.attributes)

    def _outside(self, operation: str, dtype: str, shapes: Mapping, attributes: Mapping) -> str:
        implementation = self.backend.implementation(operation)
        if reason := implementation.lacks.get(dtype, ""):
            return reason
        reason = self.guarded(implementation.outside, shapes, dict(attributes))
        if not isinstance(reason, str):
            raise Violation(f"outside must return a reason or an empty string, but returned {type(reason).__name__}")
        return reason

    def frozen(self, problem: Problem) -> tuple[str, ...]:
        """Inputs of the problem to which the backend declares to give no gradient."""
        frozen = self.backend.implementation(problem.operation.name).frozen
        return tuple(name for name in problem.wanted if name in frozen)

    def wanted(self, problem: Problem) -> tuple[str, ...]:
        """Inputs whose gradients the backend is asked for."""
        frozen = self.frozen(problem)
        return tuple(name for name in problem.wanted if name not in frozen)

    def due(self, problem: Problem) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of all that the backend has to return."""
        withheld = {"d" + name for name in self.frozen(problem)}
        return {name: spec for name, spec in problem.result_specs.items() if name not in withheld}

    def forward(self, problem: Problem, arrays: list, *, residuals: bool | Sequence[str]) -> tuple:
        """The backend's forward, as (outputs, residuals).

        Raises
        ------
        Outside
            If the backend says that it does not take the problem.
        """
        if reason := self.outside(problem):
            raise Outside(reason)
        implementation = self.backend.implementation(problem.operation.name)
        shared = implementation.source == "shared"
        returned = self.guarded(
            implementation.forward, *arrays, shared=shared, residuals=residuals, **problem.attributes
        )
        parts = self.guarded(tuple, returned) if isinstance(returned, tuple) else ()
        if len(parts) != 2 or not isinstance(parts[0], tuple):
            raise Violation("forward must return (outputs, residuals), outputs a tuple")
        return self.guarded(tuple, parts[0]), parts[1]

    def vjp(self, problem: Problem, residuals, cotangents: list, wanted) -> tuple:
        """The backend's vjp, a tuple of gradients."""
        implementation = self.backend.implementation(problem.operation.name)
        shared = implementation.source == "shared"
        gradients = self.guarded(implementation.vjp, residuals, cotangents, wanted, shared=shared)
        parts = self.guarded(tuple, gradients) if isinstance(gradients, tuple | list) else None
        if parts is None or len(parts) != len(wanted):
            raise Violation(f"vjp must return {len(wanted)} gradients, a tuple")
        return parts

    def call(self, problem: Problem, arrays: list) -> Results:
        """Forward, and vjp if the problem has cotangents, on the backend's own arrays.

        Raises
        ------
        Violation
            If the backend raises, or returns another number of results.
        """
        operation, cotangents, wanted = problem.operation, self.cotangents(problem), self.wanted(problem)
        outputs, residuals = self.forward(problem, arrays, residuals=bool(cotangents))
        if len(outputs) != len(operation.outputs):
            raise Violation(f"the backend returned {len(outputs)} outputs, where {len(operation.outputs)} are due")
        gradients = self.vjp(problem, residuals, cotangents, wanted) if cotangents else ()
        names = [o.name for o in operation.outputs] + ["d" + name for name in wanted]
        return Results(zip(names, (*outputs, *gradients)))

    def run(self, problem: Problem) -> Results:
        """Everything the problem asks for, as NumPy arrays of the right shape and dtype.

        Raises
        ------
        Violation
            If the backend raises, or a result has another shape or dtype.
        """
        results = Results((name, self.host(a)) for name, a in self.call(problem, self.arrays(problem)).items())
        for name, spec in self.due(problem).items():
            require_form(name, spec, results)
        return results

    def compare(self, problem: Problem, results: dict, names=None, *, finite: bool = True) -> list[Comparison]:
        """Results against golden values at the precision that the backend declares."""
        golden = answer(problem, self.precision(problem.dtype), finite=finite)
        return self._compare(problem, results, {n: golden[n] for n in names or results})

    def _compare(self, problem, results, golden) -> list[Comparison]:
        model = rounding_model(self.precision(problem.dtype))
        return [compare(problem, n, golden[n], results[n], model) for n in golden]

    def judge(self, problem: Problem, results: dict, golden: dict, observed: Observation) -> None:
        """Each result must lie within the budget of its golden value.

        Raises
        ------
        Violation
            Naming the worst element of each that does not.
        """
        comparisons = self._compare(problem, results, golden)
        for comparison in comparisons:
            observed.add(comparison)
        wrong = [str(c) for c in comparisons if not c.conforms]
        if wrong:
            raise Violation("; ".join(wrong), results)

    def hold(self, problem: Problem, observed: Observation, *, gradients: bool) -> None:
        """Run the problem; outputs (or gradients) must lie within their budgets.

        Raises
        ------
        Violation
            Naming the worst element of each that does not.
        """
        results = self.run(problem)
        outputs = [o.name for o in problem.operation.outputs]
        golden = answer(problem, self.precision(problem.dtype))
        self.judge(problem, results, {n: golden[n] for n in results if (n not in outputs) == gradients}, observed)
