"""Certification: the reference first, then the smoke faults, then the backend; every verdict into one certificate."""

from __future__ import annotations

import atexit
import functools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from refpeft import plugins
from refpeft.backend import Backend
from refpeft.errors import CapabilityError
from refpeft.operation import find
from refpeft.problem import Problem
from refpeft_conformance import merging, remembered
from refpeft_conformance.checks import Check
from refpeft_conformance.checks.trajectory import hold
from refpeft_conformance.counterexample import Counterexample
from refpeft_conformance.diagnose import diagnose
from refpeft_conformance.faults import Faulty, faults_of
from refpeft_conformance.loop_faults import LOOP_FAULTS, made
from refpeft_conformance.plan import (
    Plan,
    checks_on,
    named_fault,
    planned,
    require_answers,
    require_available,
    require_fault,
)
from refpeft_conformance.recording import trained
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import ERROR, FAIL, PASS, Observation, Verdict, Violation
from refpeft_conformance.workers import Lost, Task, Workers
from refpeft_spec.trajectory import DTYPE, trajectories

__all__ = ["Outcome", "Plan", "caught_by", "certify", "execute", "named_fault", "planned", "require_available"]

BATCH = 250
"""After so many answers of the harness they are kept, so that an interrupted certification is not all in vain."""


def execute(plan: Plan, operation: str, dtype: str, check_id: str) -> Verdict:
    """Run one check of a plan in a worker process, within the plan's limit."""
    one_thread()
    result = _worker().one(examine, plan, operation, dtype, check_id, seconds=plan.seconds)
    check = next(c for c in checks_on(operation, dtype, plan.weights) if c.id == check_id)
    return _lost(check, result, FAIL) if isinstance(result, Lost) else result


@functools.cache
def _worker() -> Workers:
    """The worker of `execute` and `replayed`, kept for the next call."""
    workers = Workers()
    atexit.register(workers.close)
    return workers


def examine(plan: Plan, operation: str, dtype: str, check_id: str) -> Verdict:
    """Run one check of a plan in this process."""
    check = next(c for c in checks_on(operation, dtype, plan.weights) if c.id == check_id)
    subject = plan.subject()
    verdict = run(check, subject, profile=plan.profile, random_seed=plan.seed)
    if verdict.verdict == FAIL and isinstance(verdict.problem, Problem):
        verdict.explanation = tuple(diagnose(verdict.problem, verdict.outputs or {}, subject.precision(dtype)))
    return verdict


def one_thread() -> None:
    """Every worker started from now on is one thread wide: results do not depend on how a library splits its sums."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def smoke(plan: Plan, operation: str, dtype: str) -> list[tuple[str, str]]:
    """Make one fault of each family to the reference; returns (fault, id of the check that caught it or nothing).

    Provenance is left out: the reference may call itself. Of a trajectory, one mistake of the loop.
    """
    if operation in trajectories():
        fault = random.Random(f"{plan.seed} {operation}").choice(sorted(LOOP_FAULTS))
        return [(fault, loop_caught_by(plugins.backend("reference"), operation, fault))]
    operation_ = find(operation)
    by_family: dict[str, list] = {}
    for fault in (f for f in faults_of(operation_, dtype) if f.family != "provenance"):
        by_family.setdefault(fault.family, []).append(fault)
    chosen = [
        random.Random(f"{plan.seed} {operation} {dtype} {family}").choice(found) for family, found in by_family.items()
    ]
    drawn: dict[str, list[Problem]] = {}
    return [
        (fault.name, caught_by(Faulty(plugins.backend("reference"), fault), operation, dtype, plan.seed, drawn=drawn))
        for fault in chosen
    ]


def caught_by(
    backend: Backend,
    operation: str,
    dtype: str,
    seed: int = 0,
    profile: str = "standard",
    drawn: dict[str, list[Problem]] | None = None,
) -> str:
    """Id of the first check that a backend fails; empty if it passes all. ``drawn`` as for `run`.

    Golden files are left out: what is measured is whether the lanes find a mistake on problems they draw themselves.
    """
    subject = Subject(backend, backend.devices()[0])
    for check in checks_on(operation, dtype):
        if (
            check.kind != "golden"
            and run(check, subject, profile=profile, random_seed=seed, shrinking=False, drawn=drawn).verdict == FAIL
        ):
            return check.id
    return ""


def loop_caught_by(backend: Backend, trajectory: str, fault: str) -> str:
    """Id of the check that a training on a backend fails whose loop makes a mistake; empty if it passes, or breaks off."""
    subject, (*_, whole) = Subject(backend, backend.devices()[0], loop=fault), checks_on(trajectory, DTYPE)
    training = trained(subject, trajectories()[trajectory], made(subject))
    try:
        hold(subject, trajectories()[trajectory], training, Observation())
    except Violation:
        return "" if training.stopped else whole.id
    return ""


@dataclass
class Outcome:
    """Everything that a certification found.

    Attributes
    ----------
    plan : Plan
    verdicts : list of Verdict
        In the order of `planned`.
    reference : list of Verdict
    smoke : dict of (operation, dtype) to list of (fault, check)
    saved : dict of file name to str
        Earlier counterexamples, replayed first: what each still violates, empty where it passes now.
    remembered : int
        How much of ``reference`` and ``smoke`` was shown by an earlier certification.
    merging : dict of method to dict of dtype to dict
        What the backend's merges cost, see `refpeft.merging.Cost`.
    """

    plan: Plan
    verdicts: list[Verdict]
    reference: list[Verdict]
    smoke: dict[tuple[str, str], list[tuple[str, str]]]
    saved: dict[str, str]
    remembered: int = 0
    merging: dict[str, dict[str, dict]] = field(default_factory=dict)


def certify(
    plan: Plan,
    *,
    jobs: int = 1,
    saved: Path | None = None,
    fresh: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Outcome:
    """Run a plan.

    Parameters
    ----------
    plan : Plan
    jobs : int
        Worker processes. The reference runs in workers of its own, which no backend comes near.
    saved : Path, optional
        Folder of earlier counterexamples, to be replayed first.
    fresh : bool
        Whether the harness is tried anew, whatever it has shown before.
    progress : callable
        Told (done, total, news) after each step; the news is a sentence where a task gave no result, else empty.

    Raises
    ------
    CapabilityError
        If the backend cannot run here, or nothing of the plan could run.
    """
    one_thread()
    with Workers(jobs) as theirs, Workers(jobs) as ours:
        _reach(plan, theirs)
        return _certify(plan, theirs, ours, saved, fresh, progress)


def _reach(plan: Plan, workers: Workers) -> None:
    """Ask the backend for all that it says of itself, in a worker first: this process asks only what was answered there."""
    answer = workers.one(require_answers, plan, seconds=plan.seconds)
    if isinstance(answer, Lost):
        raise CapabilityError(f"UNSUPPORTED: backend {plan.backend!r} {answer.why} when it was asked what it can do.")


def _certify(
    plan: Plan, theirs: Workers, ours: Workers, saved: Path | None, fresh: bool, progress: Callable
) -> Outcome:
    checks = planned(plan)
    if not checks:
        raise CapabilityError(
            f"nothing to certify: no operation of backend {plan.backend!r} matches {plan.operations!r}."
        )
    require_fault(plan, checks)
    examples = _saved_of(plan, saved) if saved else {}
    pairs = sorted({(c.operation.name, c.dtype) for c in checks})
    reference = replace(plan.reference(), operations=plan.operations)
    baseline = [c for c in planned(reference) if (c.operation.name, c.dtype) in pairs]
    harness = [
        Task(("smoke", pair), smoke, (plan, *pair))
        for pair in pairs
        if pair[1] == "float32" or pair[1] == find(pair[0]).dtypes[-1]
    ]
    harness += [Task(("reference", c.id), examine, (reference, *_key(c))) for c in baseline]
    before = remembered.recall()
    known = {} if fresh else {t.name: before[q] for t in harness if (q := _question(plan, t)) in before}
    asked = {t.name: t for t in harness if t.name not in known}
    subject = [Task(("saved", name), replay, (plan, e), plan.seconds) for name, e in examples.items()]
    subject += [Task(("check", c.id), examine, (plan, *_key(c)), plan.seconds) for c in checks]
    merges = sorted({name for name, _ in pairs if name.endswith(".merge")})
    subject += [Task(("merging", name), merging.measure, (plan, name), plan.seconds) for name in merges]
    results: dict[str, dict] = {"smoke": {}, "reference": {}, "saved": {}, "check": {}, "merging": {}}
    shown: dict[str, list] = {}
    for (stage, name), found in known.items():
        results[stage][name] = [tuple(pair) for pair in found] if stage == "smoke" else None
    for done, ((stage, name), result) in enumerate(_in_turn((ours, list(asked.values())), (theirs, subject)), 1):
        results[stage][name] = result
        news = f"{name if stage != 'smoke' else ' '.join(name)}: it {result.why}" if isinstance(result, Lost) else ""
        progress(done, len(asked) + len(subject), news)
        if task := asked.get((stage, name)):
            shown |= remembered.success(_question(plan, task), task.arguments[1], result)
            if done % BATCH == 0 or done == len(asked):
                remembered.keep(shown)
    return Outcome(
        plan,
        [_lost(c, r, FAIL) if isinstance(r := results["check"][c.id], Lost) else r for c in checks],
        [_on_reference(c, results["reference"][c.id]) for c in baseline],
        {pair: [(f"the stage {r.why}", "")] if isinstance(r, Lost) else r for pair, r in results["smoke"].items()},
        {n: f"the backend {r.why}" if isinstance(r, Lost) else r[0] for n, r in results["saved"].items()},
        len(known),
        {m: costs for r in results["merging"].values() if not isinstance(r, Lost) for m, costs in r.items()},
    )


def _question(plan: Plan, task: Task) -> str:
    """What a task of the harness asks, as words."""
    stage, name = task.name
    return f"{stage} {plan.seed} {name if stage == 'reference' else ' '.join(name)}"


def _on_reference(check: Check, result: Verdict | Lost | None) -> Verdict:
    """The verdict on the reference, None standing for one that is remembered as passed."""
    if result is None:
        name, dtype = check.operation.name, check.dtype
        return Verdict(check.id, name, dtype, check.kind, check.claim, PASS, "", Observation(), 0.0)
    return _lost(check, result, ERROR) if isinstance(result, Lost) else result


def _in_turn(*stages: tuple[Workers, list[Task]]) -> Iterator[tuple]:
    """Results of one stage after the other."""
    for workers, tasks in stages:
        yield from workers.run(tasks)
        workers.close()


def _key(check: Check) -> tuple[str, str, str]:
    return check.operation.name, check.dtype, check.id


def _lost(check: Check, lost: Lost, verdict: str) -> Verdict:
    """The verdict on a check that gave none: FAIL for a backend, on the problem that it had in hand."""
    return Verdict(
        check.id,
        check.operation.name,
        check.dtype,
        check.kind,
        check.claim,
        verdict,
        f"the backend {lost.why}",
        Observation(examples=lost.examples),
        0.0,
        problem=lost.problem if isinstance(lost.problem, Problem) else None,
        outputs={},
    )


def replayed(plan: Plan, example: Counterexample) -> tuple[str, bool]:
    """`Counterexample.replay` on the plan's backend, in a worker process, within the plan's limit.

    Raises
    ------
    CapabilityError
        If the backend cannot run here.
    """
    result = _worker().one(replay, plan, example, seconds=plan.seconds)
    return (f"the backend {result.why}", not example.outputs) if isinstance(result, Lost) else result


def replay(plan: Plan, example: Counterexample) -> tuple[str, bool]:
    """`Counterexample.replay` on the plan's backend, in this process."""
    require_available(plan)
    return example.replay(plan.subject())


def _saved_of(plan: Plan, folder: Path) -> dict[str, Counterexample]:
    """This backend's counterexamples in a folder, by file name."""
    found = {path.name: Counterexample.load(path) for path in sorted(folder.glob("*.safetensors"))}
    subject = plan.subject()
    return {
        name: example
        for name, example in found.items()
        if plan.selects(example.problem.operation.name)
        and example.backend == (plan.command or plan.backend)
        and example.problem.operation.name in subject.backend.operations()
        and subject.precision(example.problem.dtype) is not None
        and (subject.differentiates(example.problem.operation.name) or not example.find_check().gradients)
        and not _turned_away(subject, example.problem)
    }


def _turned_away(subject: Subject, problem: Problem) -> bool:
    """Whether the backend says, in whatever words, that it does not take the problem."""
    try:
        return bool(subject.outside(problem))
    except Violation:
        return False
