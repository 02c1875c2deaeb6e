"""Recording: a model is trained on a backend by the loop of ``refpeft train``, and every call of an operation is kept as the
problem that it was, in the backend's own inputs, with what the backend gave."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from refpeft.backend import Backend, Implementation
from refpeft.operation import Operation
from refpeft.problem import Problem
from refpeft.training import loop
from refpeft_conformance.around import Around
from refpeft_conformance.subject import Results, Subject, require_form
from refpeft_conformance.verdict import Outside, Violation
from refpeft_conformance.worker import in_flight, said
from refpeft_spec.trajectory import SETTINGS, Trajectory, decoder, rows


@dataclass
class Call:
    """One call of an operation.

    Attributes
    ----------
    step : int
        Of the training, from 1.
    problem : Problem
        With cotangents, if its vjp was asked for.
    results : Results
        Outputs, and the gradients that were wanted; empty where the backend raised.
    """

    step: int
    problem: Problem
    results: Results = field(default_factory=Results)


@dataclass
class Training:
    """What came of a training.

    Attributes
    ----------
    results : dict of str to ndarray
        ``loss`` of every step, and what was trained at the end, as `refpeft_spec.trajectory` names them.
    calls : list of Call
    stopped : Violation or None
        Where it did not come to its end.
    """

    results: dict[str, np.ndarray]
    calls: list[Call]
    stopped: Violation | None = None


class Recording(Around):
    """A subject's backend, each of whose calls is guarded and kept.

    Attributes
    ----------
    calls : list of Call
    step : int
    """

    def __init__(self, subject: Subject):
        super().__init__(subject.backend)
        self.subject, self.step = subject, 1
        self.calls: list[Call] = []

    def around(self, operation: Operation, inner: Implementation) -> Implementation:
        subject = self.subject

        def forward(*inputs, residuals=True, **attributes):
            arrays = {a.name: self._copy(x) for a, x in zip(operation.signature.inputs, inputs) if x is not None}
            call = Call(self.step, Problem.of(operation, arrays, attributes))
            self.calls.append(call)
            in_flight(call.problem)
            outputs, kept = subject.forward(call.problem, list(inputs), residuals=residuals)
            self._keep(call, [o.name for o in operation.outputs], outputs)
            return outputs, (call, kept)

        def vjp(residuals, cotangents, wanted):
            call, kept = residuals
            call.problem = call.problem.with_cotangents(dict(zip(operation.cotangents, map(self._copy, cotangents))))
            in_flight(call.problem)
            given, call.results = call.results, Results()
            gradients = subject.vjp(call.problem, kept, list(cotangents), tuple(wanted))
            call.results = given
            self._keep(call, ["d" + name for name in wanted], gradients)
            return gradients

        return replace(inner, forward=forward, vjp=vjp if inner.vjp else None)

    def _copy(self, array) -> np.ndarray:
        return np.array(self.subject.host(array))

    def _keep(self, call: Call, names: list[str], arrays: tuple) -> None:
        due = self.subject.due(call.problem)
        for name, array in zip(names, arrays, strict=True):
            call.results[name] = self._copy(array)
            require_form(name, due[name], call.results)


def trained(
    subject: Subject, trajectory: Trajectory, around: Callable[[Recording], Backend] = lambda backend: backend
) -> Training:
    """Train on a subject's backend; ``around`` may put something between it and the loop, as mistakes of a loop.

    Raises
    ------
    Outside
        If the backend says that it does not take one of the calls.
    """
    recording = Recording(subject)

    def advance(step: int, loss: float) -> None:
        recording.step = step + 1

    try:
        with tempfile.TemporaryDirectory() as folder:
            model = decoder(around(recording), subject.device)
            out = Path(folder) / "run"
            losses = loop.train(model, trajectory.method, trajectory.sites, rows(), SETTINGS, out, {}, advance)
        results = {"loss": np.array(losses)} | {name: subject.host(p) for name, p in model.trained.items()}
    except Outside:
        raise
    except Violation as violation:
        return Training({}, recording.calls, violation)
    except Exception as error:
        return Training({}, recording.calls, Violation(f"training on the backend raised {said(error)}"))
    return Training(results, recording.calls)
