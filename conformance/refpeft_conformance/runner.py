"""Running a check: draw problems, examine the subject on each, and shrink the first that fails."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import reject
from hypothesis.errors import Flaky, Unsatisfiable
from hypothesis.strategies import SearchStrategy

from refpeft import plugins
from refpeft.errors import CapabilityError
from refpeft.golden import BudgetError
from refpeft.problem import Problem
from refpeft_conformance.checks import Check
from refpeft_conformance.draws import draw
from refpeft_conformance.shrink import shrink
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import (
    ERROR,
    FAIL,
    PASS,
    TRIES,
    UNSUPPORTED,
    NoGradient,
    Observation,
    Outside,
    Verdict,
    Violation,
)
from refpeft_conformance.worker import in_flight

PROFILES = {"sample": 3, "quick": 8, "standard": 30, "thorough": 100}
"""Examples a check examines, by profile; ``sample`` is for test suites."""
LARGEST_KEPT = 2**18
"""Elements of a check's problems that are kept for other subjects."""
PATIENCE = 300
"""So many problems in a row may be outside of what the backend takes before no others are drawn."""


def run(
    check: Check,
    subject: Subject,
    *,
    profile: str = "standard",
    random_seed: int = 0,
    shrinking: bool = True,
    drawn: dict[str, list[Problem]] | None = None,
) -> Verdict:
    """Examine one claim.

    Parameters
    ----------
    check : Check
    subject : Subject
    profile : str
        One of `PROFILES`.
    random_seed : int
        Equal seeds draw equal problems.
    shrinking : bool
        Whether to reduce a counterexample; its bits are kept either way. One on which the backend ran out of time is not.
    drawn : dict of check id to list of problems, optional
        What was drawn for checks that passed, with their answers, to which is added. Subjects of equal precision, asked with an
        equal profile and seed, get the same problems from it as they would draw.

    Returns
    -------
    Verdict
        ERROR where the harness itself failed, never where the backend did. A backend that breaks a claim on one call and
        keeps it on the next has failed: whatever Hypothesis says of flakiness, the first violation counts.
    """
    started, observed = time.perf_counter(), Observation()
    patience = _Patience(observed)
    found: list[tuple[Any, Violation]] = []
    asked: list[Any] = []

    def verdict(kind: str, message: str = "", **more) -> Verdict:
        seconds = time.perf_counter() - started
        return Verdict(
            check.id,
            check.operation.name,
            check.dtype,
            check.kind,
            check.claim,
            kind,
            message,
            observed,
            seconds,
            **more,
        )

    missing = _missing(check, subject)
    if missing:
        return verdict(UNSUPPORTED, missing)

    def examine(problem: Problem | None) -> None:
        compared = observed.elements
        if problem is not None:
            problem = subject.asked(problem)
            in_flight(problem)
            asked.append(problem)
        observed.examples += 1
        try:
            check.examine(subject, problem, observed)
        except Outside as turned_away:
            observed.examples -= 1
            patience.turned_away(str(turned_away))
            raise
        except Violation as violation:
            found.append((problem, violation))
            raise
        except BudgetError:
            if check.kind != "laws":
                raise
        if check.kind == "laws" and observed.elements == compared:
            observed.examples -= 1
            raise _Silent
        patience.refused = 0

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            before = {name: subject.counted(name) for name in check.operations}
            try:
                examples = max(3, round(check.share * PROFILES[profile]))
                problems = (drawn or {}).get(check.id) or check.problems(
                    replace(subject, turned_away=patience.turned_away)
                )
                _examine_all(problems, examine, examples, f"{random_seed} {check.id}", patience)
            except Exception:
                if not found:
                    raise
            for name, count in before.items():
                observed.counted |= subject.counted(name, count)
            if not found and observed.examples == 0 and observed.outside:
                return verdict(
                    UNSUPPORTED, f"the backend takes no problem of this check: {'; '.join(observed.outside)}"
                )
            if not found and observed.examples == 0:
                return verdict(ERROR, "no example could be drawn")
            if not found:
                if drawn is not None and sum(_size(p) for p in asked) <= LARGEST_KEPT:
                    drawn[check.id] = asked
                return verdict(PASS)
            problem, violation = found[0]
            place, minimal = violation.place, False
            if shrinking and problem is not None and not isinstance(violation.__cause__, TimeoutError):
                smaller, is_minimal = shrink(problem, _told_apart(check, subject, problem))
                tries = (_violation(check, subject, smaller) for _ in range(TRIES))
                if again := next(filter(None, tries), None):
                    problem, violation, minimal = smaller, again, is_minimal
    except NoGradient as withheld:
        observed.examples = 0
        return verdict(UNSUPPORTED, str(withheld))
    except Outside as turned_away:
        return verdict(UNSUPPORTED, f"the backend does not take a call of the training: {turned_away}")
    except Violation as violation:
        return verdict(FAIL, violation.message)
    except Exception as error:
        return verdict(ERROR, f"the harness failed: {type(error).__name__}: {error}\n{traceback.format_exc()}")
    return verdict(FAIL, place + violation.message, problem=problem, outputs=violation.outputs, minimal=minimal)


def _size(problem: Problem) -> int:
    """How many elements it has, cotangents included."""
    return sum(a.size for a in (*problem.inputs.values(), *problem.cotangents.values()))


def _missing(check: Check, subject: Subject) -> str:
    """Why the backend is not held to the check; empty if it is."""
    if subject.precision(check.dtype) is None:
        return f"the backend does not declare {check.dtype}"
    for name in (*check.operations, *check.needs):
        try:
            implementation = subject.backend.implementation(name)
        except CapabilityError as error:
            return str(error)
        if reason := implementation.missing or implementation.lacks.get(check.dtype, ""):
            return reason
        if name in check.differentiated and not subject.differentiates(name):
            return f"the backend declares {name} forward only"
    return ""


@dataclass
class _Patience:
    """How many problems in a row were outside of what the backend takes, each counted in ``observed``."""

    observed: Observation
    refused: int = 0

    @property
    def over(self) -> bool:
        return self.refused >= PATIENCE

    def turned_away(self, reason: str) -> None:
        self.observed.turned_away(reason)
        self.refused += 1
        if self.over:
            raise Outside(reason)


class _Silent(Exception):
    """A law compares nothing on a problem, or with what has no budget."""


def _examine_all(problems, examine: Callable, examples: int, random_seed: str, patience: _Patience) -> None:
    """Examine problems that are given, or drawn; those outside of what the backend takes make room for others, and those too
    of which a law says nothing.

    The seed is a check's own, so that each of an operation's checks sees other shapes.
    """
    if not isinstance(problems, SearchStrategy):
        for problem in problems:
            with suppress(Outside, _Silent):
                examine(problem)
        return

    def search(problem):
        try:
            examine(problem)
        except Outside:
            if patience.over:
                raise
            reject()
        except _Silent:
            reject()

    try:
        with suppress(Unsatisfiable, Outside):
            draw(problems, search, examples, random_seed)
    except Flaky:
        if not patience.over:
            raise


def _told_apart(check: Check, subject: Subject, problem: Problem) -> Callable[[Problem], bool]:
    """Whether a problem fails on the subject and not on the reference, as a smaller counterexample must.

    Reduced far enough, a problem may lose what the check takes for granted of those that it draws, and then fails on
    anything. Where the reference fails on the first one already, the subject's failure is all there is to go by.
    """
    reference = Subject(plugins.backend("reference"))
    passes = _violation(check, reference, problem) is None
    return lambda p: (
        _violation(check, subject, p) is not None and not (passes and _violation(check, reference, p) is not None)
    )


def _violation(check: Check, subject: Subject, problem: Problem) -> Violation | None:
    """What the problem violates, if it does; None also where the problem is not one of the check's own."""
    in_flight(problem)
    try:
        check.examine(subject, problem, Observation())
    except Violation as violation:
        return violation
    except Exception:
        return None
    return None
