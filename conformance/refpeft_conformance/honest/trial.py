"""Trials: honest backends held to the budgets of an operation, and how much of each budget they can use up."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from refpeft.comparison import Comparison
from refpeft.errors import RefpeftError
from refpeft.numerics.formats import as_format, store
from refpeft.operation import find
from refpeft.problem import Problem
from refpeft_conformance.checks import checks_of
from refpeft_conformance.draws import draw
from refpeft_conformance.honest.array import STYLES
from refpeft_conformance.honest.backend import HonestBackend, honest_backends
from refpeft_conformance.honest.summation import ORDERS
from refpeft_conformance.runner import run
from refpeft_conformance.strategies import problems, regimes_of
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import PASS, Observation, Violation

LARGE = 512
ENOUGH = 0.01
"""A budget of which honest arithmetic reaches less may be needlessly wide."""

_BATCH, _FEW = 100, 15


@dataclass
class Trial:
    """What honest backends did with the budgets of one operation in one dtype.

    Attributes
    ----------
    operation, dtype : str
    problems, large, runs : int
        Problems, those with an axis longer than `LARGE`, and runs of a backend on one.
    alarms : list of str
        What was outside a budget.
    reached : dict of str to float
        By output or gradient, the largest share of its budget that was used up where the budget is not vacuous.
    widest : dict of str to float
        By output or gradient, the largest budget: zero where the result only moves data.
    """

    operation: str
    dtype: str
    problems: int = 0
    large: int = 0
    runs: int = 0
    alarms: list[str] = field(default_factory=list)
    observed: Observation = field(default_factory=Observation)
    reached: dict[str, float] = field(default_factory=dict)
    widest: dict[str, float] = field(default_factory=dict)
    _best: dict[str, tuple[Problem, HonestBackend]] = field(default_factory=dict)

    def hold(self, problem: Problem, backends) -> None:
        """Run the problem on each backend, and hold all results to their budgets."""
        self.problems += 1
        self.large += any(n > LARGE for array in problem.inputs.values() for n in array.shape)
        for backend in backends:
            self.runs += 1
            try:
                comparisons = compared(problem, backend)
            except Violation as violation:
                self.alarms.append(f"{backend.name}: {violation.message}")
                continue
            for comparison in comparisons:
                self.observed.add(comparison)
                self._reach(comparison, problem, backend)
                if not comparison.conforms:
                    self.alarms.append(f"{backend.name}: {comparison}")

    def _reach(self, comparison: Comparison, problem, backend) -> None:
        """Keep the problem if it uses more of the result's budget than any before."""
        name, golden = comparison.name, comparison.golden
        if golden.kind not in ("proven", "perturbed"):
            return
        self.widest[name] = max(self.widest.get(name, 0.0), float(np.max(golden.budget, initial=0.0)))
        judged = ~golden.vacuous & (golden.budget > 0)
        share = float(np.max(comparison.share[judged], initial=-1.0))
        if share > self.reached.get(name, -1.0):
            self.reached[name], self._best[name] = share, (problem, backend)

    def vary(self, name: str, random: np.random.Generator) -> None:
        """Try a problem next to the one that uses most of the budget of ``name``."""
        problem, backend = self._best[name]
        with suppress(RefpeftError, Violation):
            near = _varied(problem, random)
            self._reach(next(c for c in compared(near, backend) if c.name == name), near, backend)


def compared(problem: Problem, backend: HonestBackend) -> list[Comparison]:
    """A backend's results on a problem against their golden values."""
    subject = Subject(backend)
    return subject.compare(problem, subject.run(problem))


def drawn(operation: str, dtype: str, *, long: bool = True):
    """Problems in every regime, a quarter of them long: half of these, over a tenth of all, are above `LARGE`."""
    others = [r for r in regimes_of(operation) if r != "long"]
    regimes = 3 * others + long * len(others) * ["long"]
    return st.sampled_from(regimes).flatmap(lambda regime: problems(operation, dtype=dtype, regime=regime))


def hold(
    operation: str, dtype: str, *, examples: int, seconds: float = np.inf, seed: int = 0, long: bool = True
) -> Trial:
    """Hold honest backends to their budgets; the orders take turns at the problems, each in all styles.

    Parameters
    ----------
    operation, dtype : str
    examples : int
        How many problems.
    seconds : float
        Draw no more after that many of computing.
    seed : int
    long : bool
        Whether long dims are among them.

    Returns
    -------
    Trial
    """
    trial, started = Trial(operation, dtype), time.process_time()
    turns = [[HonestBackend(order, style) for style in STYLES] for order in ORDERS]

    def examine(problem):
        trial.hold(problem, turns[trial.problems % len(turns)])

    for start in range(0, examples, _BATCH):
        if time.process_time() - started > seconds:
            break
        _draw(drawn(operation, dtype, long=long), examine, min(_BATCH, examples - start), seed + start)
    return trial


def construct(trial: Trial, *, seed: int = 0, tries: int = 300) -> None:
    """Search for cases that use `ENOUGH` of each budget that the trial used less of: random ones, then near the best.

    Parameters
    ----------
    trial : Trial
        Holds what is found.
    seed : int
    tries : int
        How many cases at most for each output or gradient.
    """
    backends, random = honest_backends(), np.random.default_rng(seed)
    plain = problems(trial.operation, dtype=trial.dtype)
    for attempt in range(tries // _FEW):
        if all(share >= ENOUGH for share in trial.reached.values()):
            return
        backend = backends[attempt % len(backends)]
        _draw(plain, lambda problem, backend=backend: trial.hold(problem, [backend]), _FEW, seed + attempt)
    for name in trial.reached:
        for _ in range(tries):
            if trial.reached[name] < ENOUGH:
                trial.vary(name, random)


def hold_to_checks(operation: str, dtype: str, *, seed: int = 0, profile: str = "standard") -> tuple[int, list[str]]:
    """Hold honest backends to every check of the operation, a backend a check.

    Returns
    -------
    (int, list of str)
        How many checks, and those that did not pass.
    """
    checks, backends = list(checks_of(find(operation), dtype)), honest_backends()
    failed = []
    for number, check in enumerate(checks, seed):
        backend = backends[number % len(backends)]
        verdict = run(check, Subject(backend), profile=profile, random_seed=seed, shrinking=False)
        if verdict.verdict != PASS:
            failed.append(f"{backend.name}: {check.id}: {verdict.message}")
    return len(checks), failed


def _draw(strategy, examine, examples: int, seed: int) -> None:
    with suppress(Unsatisfiable):
        draw(strategy, examine, examples, seed)


def _varied(problem: Problem, random: np.random.Generator) -> Problem:
    """The problem with new significands in one of its arrays, of the same signs and about the same size."""
    floating = [n for n, a in (problem.inputs | problem.cotangents).items() if a.dtype.kind not in "iub"]
    name = floating[int(random.integers(len(floating)))]
    kind = "inputs" if name in problem.inputs else "cotangents"
    array = getattr(problem, kind)[name]
    values = array.astype(np.float64) * np.where(
        random.random(array.shape) < 0.5, random.uniform(0.5, 2, array.shape), 1
    )
    return problem.replace(**{kind: getattr(problem, kind) | {name: store(values, as_format(array.dtype))}})
