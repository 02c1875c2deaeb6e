"""Trajectories: a backend that declares `training` trains a tiny decoder, see `refpeft_spec.trajectory`.

Every call of an operation is held to its proven budget, on the backend's own inputs: one that fails is a problem of that
operation alone, which is reduced and replayed as any other. The whole, losses and what was trained, is held to the perturbed
budget.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refpeft.comparison import Comparison
from refpeft.golden import answer
from refpeft.numerics.precision import standard_precision
from refpeft_conformance.checks import Check
from refpeft_conformance.loop_faults import made
from refpeft_conformance.recording import Call, Training, trained
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation, Violation
from refpeft_spec.trajectory import DTYPE, Trajectory


def checks(trajectory: Trajectory) -> Iterator[Check]:
    """The two claims of a trajectory."""
    yield _calls(trajectory)
    yield _whole(trajectory)


def _calls(trajectory: Trajectory) -> Check:
    recorded: dict[int, Call] = {}

    def drawn(subject):
        training = trained(subject, trajectory, made(subject))
        for call in training.calls:
            recorded[id(call.problem)] = call
            yield call.problem
        if training.stopped:
            raise training.stopped

    def examine(subject, problem, observed):
        """What the backend gave in the training; of a problem that was reduced or saved, and of a call that raised, what it
        gives now."""
        call = recorded.pop(id(problem), None)
        results = call.results if call and call.results else subject.run(problem)
        golden = answer(problem, subject.precision(DTYPE))
        try:
            subject.judge(problem, results, {name: golden[name] for name in results}, observed)
        except Violation as violation:
            if call:
                violation.place = f"{problem.operation.name} in step {call.step}: "
            raise

    claim = "every call of twenty steps lies within its budget"
    return Check(trajectory, DTYPE, "training", claim, examine, drawn)


def _whole(trajectory: Trajectory) -> Check:
    def examine(subject, problem, observed):
        hold(subject, trajectory, trained(subject, trajectory, made(subject)), observed)

    claim = "losses and what is trained stay within the spread of twenty steps"
    return Check(trajectory, DTYPE, "training", claim, examine, lambda subject: [None])


def hold(subject: Subject, trajectory: Trajectory, training: Training, observed: Observation) -> None:
    """Hold a training to the golden trajectory, its budget computed anew where the backend declares another precision.

    Raises
    ------
    Violation
        Telling from which step on the loss is outside, and the worst element of what was trained.
    """
    if training.stopped:
        raise training.stopped
    precision = subject.precision(DTYPE)
    golden = trajectory.load() if precision == standard_precision(DTYPE) else trajectory.golden(precision)
    found = {name: Comparison.of(name, g, training.results[name]) for name, g in golden.items()}
    for comparison in found.values():
        observed.add(comparison)
    outside = ~(found["loss"].share <= 1)
    place = f"from step {np.argmax(outside) + 1} on: " if np.any(outside) else ""
    if wrong := [str(c) for c in found.values() if not c.conforms]:
        raise Violation("; ".join(wrong), place=place)
