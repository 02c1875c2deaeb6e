"""Certification: the reference first, then the smoke faults, then the backend; every verdict into one certificate."""

from __future__ import annotations

import fnmatch
import functools
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from refpeft import plugins
from refpeft.backend import Backend
from refpeft.errors import CapabilityError, PluginError, RefpeftError
from refpeft.numerics.formats import FORMATS
from refpeft.operation import catalogue, find
from refpeft.problem import Problem
from refpeft_conformance.checks import Check, checks_of
from refpeft_conformance.diagnose import diagnose
from refpeft_conformance.faults import HONEST, Faulty, faults, faults_of
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import FAIL, Observation, Verdict


@dataclass(frozen=True)
class Plan:
    """What is certified, and how thoroughly.

    Attributes
    ----------
    backend : str
        Name of a registered backend; with ``command``, whatever the program calls itself.
    command : str
        A program that speaks the process protocol; empty for a registered backend.
    device : str
        Empty for the backend's default.
    fault : str
        A fault of the kit to make to the backend; empty for none.
    operations : str
        Patterns of operation names, between commas.
    only : str
        ``forward`` to leave gradients out; empty for all.
    profile : str
        ``quick``, ``standard`` or ``thorough``.
    seed : int
    weights : str
        ``FILE[:GLOB]`` of a real model whose matrices join the inputs; empty for none.
    """

    backend: str
    command: str = ""
    device: str = ""
    fault: str = ""
    operations: str = "*"
    only: str = ""
    profile: str = "standard"
    seed: int = 0
    weights: str = ""

    def selects(self, operation: str) -> bool:
        """Whether an operation of that name belongs to the plan."""
        return any(fnmatch.fnmatchcase(operation, pattern.strip()) for pattern in self.operations.split(","))

    def honest(self) -> Backend:
        """The backend as it is."""
        return _process(self.command) if self.command else plugins.backend(self.backend)

    def subject(self) -> Subject:
        """The backend to certify, the fault made to it if one is named."""
        backend = self.honest()
        devices = ask(backend, "devices")
        if self.device and self.device not in devices:
            raise CapabilityError(
                f"backend {backend.name!r} has no device {self.device!r} here: it has {', '.join(devices)}."
            )
        if self.fault:
            backend = Faulty(backend, named_fault(self.fault))
        return Subject(backend, self.device or devices[0])

    def reference(self) -> Plan:
        """The same plan for the reference, at the quick profile."""
        return replace(self, backend="reference", command="", device="", fault="", profile="quick", weights="")


@functools.cache
def _process(command: str) -> Backend:
    from refpeft_process import ProcessBackend

    return ProcessBackend(command)


def named_fault(name: str):
    """The fault of that name.

    Raises
    ------
    PluginError
        If the kit has none, with the nearest names.
    """
    known = faults() | {"none": HONEST}
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, n=3)
        raise PluginError(
            f"the kit has no fault {name!r}" + (f": did you mean {' or '.join(map(repr, near))}?" if near else ".")
        )
    return known[name]


def planned(plan: Plan) -> list[Check]:
    """Every check of the plan on operations that the backend declares, in a fixed order."""
    declared = ask(plan.honest(), "operations")
    names = [n for n in catalogue() if n in declared and plan.selects(n)]
    checks = [c for n in names for dtype in FORMATS if dtype in find(n).dtypes for c in _checks(n, dtype, plan.weights)]
    return [c for c in checks if not (plan.only == "forward" and c.gradients)]


@functools.lru_cache(maxsize=256)
def _checks(operation: str, dtype: str, weights: str) -> tuple[Check, ...]:
    found = tuple(checks_of(find(operation), dtype))
    if weights:
        from refpeft_conformance.checks import weights as on_weights

        found += tuple(on_weights.checks(find(operation), dtype, weights))
    return found


def execute(plan: Plan, operation: str, dtype: str, check_id: str) -> Verdict:
    """Run one check of a plan; what a worker process does."""
    _one_thread()
    check = next(c for c in _checks(operation, dtype, plan.weights) if c.id == check_id)
    subject = plan.subject()
    verdict = run(check, subject, profile=plan.profile, random_seed=plan.seed)
    if verdict.verdict == FAIL and isinstance(verdict.problem, Problem):
        verdict.explanation = tuple(diagnose(verdict.problem, verdict.outputs or {}, subject.precision(dtype)))
    return verdict


@functools.cache
def _one_thread() -> None:
    """Every worker is one thread wide: results do not depend on how a library splits its sums."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def smoke(plan: Plan, operation: str, dtype: str) -> list[tuple[str, str]]:
    """Make one fault of each family to the reference; returns (fault, id of the check that caught it or nothing).

    Provenance is left out: the reference may call itself.
    """
    operation_ = find(operation)
    by_family: dict[str, list] = {}
    for fault in (f for f in faults_of(operation_, dtype) if f.family != "provenance"):
        by_family.setdefault(fault.family, []).append(fault)
    chosen = [
        random.Random(f"{plan.seed} {operation} {dtype} {family}").choice(found) for family, found in by_family.items()
    ]
    return [
        (fault.name, caught_by(Faulty(plugins.backend("reference"), fault), operation, dtype, plan.seed))
        for fault in chosen
    ]


def caught_by(backend: Backend, operation: str, dtype: str, seed: int = 0, profile: str = "standard") -> str:
    """Id of the first check that a backend fails; empty if it passes all.

    Golden files are left out: what is measured is whether the lanes find a mistake on problems they draw themselves.
    """
    subject = Subject(backend, backend.devices()[0])
    for check in _checks(operation, dtype, ""):
        if (
            check.kind != "golden"
            and run(check, subject, profile=profile, random_seed=seed, shrinking=False).verdict == FAIL
        ):
            return check.id
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
    """

    plan: Plan
    verdicts: list[Verdict]
    reference: list[Verdict]
    smoke: dict[tuple[str, str], list[tuple[str, str]]]
    saved: dict[str, str]


def certify(
    plan: Plan,
    *,
    jobs: int = 1,
    saved: Path | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Outcome:
    """Run a plan.

    Parameters
    ----------
    plan : Plan
    jobs : int
        Worker processes; 1 runs everything in this one.
    saved : Path, optional
        Folder of earlier counterexamples, to be replayed first.
    progress : callable
        Told (done, total, what) after each step.

    Raises
    ------
    CapabilityError
        If the backend cannot run here, or nothing of the plan could run.
    """
    require_available(plan)
    replayed = replay_saved(plan, saved) if saved is not None else {}
    checks = planned(plan)
    if not checks:
        raise CapabilityError(
            f"nothing to certify: no operation of backend {plan.backend!r} matches {plan.operations!r}."
        )
    pairs = sorted({(c.operation.name, c.dtype) for c in checks})
    baseline = planned(replace(plan.reference(), operations=plan.operations))
    baseline = [c for c in baseline if (c.operation.name, c.dtype) in set(pairs)]
    if plan.fault and not any(named_fault(plan.fault).applies(c.operation, c.dtype) for c in checks):
        raise CapabilityError(
            f"the fault {plan.fault!r} cannot be made to any operation that matches {plan.operations!r}."
        )
    reference_plan = plan.reference()
    jobs_todo: list[tuple[str, object, tuple]] = [
        ("verdict", i, (execute, plan, *_key(c))) for i, c in enumerate(checks)
    ]
    jobs_todo += [("reference", i, (execute, reference_plan, *_key(c))) for i, c in enumerate(baseline)]
    jobs_todo += [
        ("smoke", pair, (smoke, plan, *pair))
        for pair in pairs
        if pair[1] == find(pair[0]).dtypes[-1] or pair[1] == "float32"
    ]
    results: dict[tuple[str, object], object] = {}
    for done, (stage, key, result) in enumerate(_results(jobs_todo, jobs), 1):
        results[stage, key] = result
        progress(done, len(jobs_todo), stage)
    return Outcome(
        plan,
        [results["verdict", i] or _ended(check) for i, check in enumerate(checks)],  # type: ignore[misc]
        [results["reference", i] for i in range(len(baseline))],  # type: ignore[misc]
        {key: found for (stage, key), found in results.items() if stage == "smoke"},  # type: ignore[misc]
        replayed,
    )


def require_available(plan: Plan) -> None:
    """Raise CapabilityError, with the reason, unless the backend can run here and says on which devices."""
    backend = plan.honest()
    reason = ask(backend, "unavailable")
    if reason:
        raise CapabilityError(f"UNSUPPORTED: backend {plan.backend!r} cannot run here: {reason}")
    if not ask(backend, "devices"):
        raise CapabilityError(f"UNSUPPORTED: backend {plan.backend!r} names no device.")


def ask(backend: Backend, method: str):
    """What a method of the backend's description answers.

    Raises
    ------
    CapabilityError
        If it raises instead.
    """
    try:
        return getattr(backend, method)()
    except RefpeftError:
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        raise CapabilityError(
            f"backend {backend.name!r} cannot answer {method}(): {type(error).__name__}: {said}"
        ) from error


def _ended(check: Check) -> Verdict:
    """The verdict on a backend that took its process down."""
    message = "the backend ended the process that ran the check"
    return Verdict(
        check.id, check.operation.name, check.dtype, check.kind, check.claim, FAIL, message, Observation(), 0.0
    )


def replay_saved(plan: Plan, folder: Path) -> dict[str, str]:
    """What each of this backend's counterexamples in ``folder`` still violates, by file name."""
    from refpeft_conformance.counterexample import Counterexample

    found = {path.name: Counterexample.load(path) for path in sorted(folder.glob("*.safetensors"))}
    subject = plan.subject()
    return {
        name: example.replay(subject)[0]
        for name, example in found.items()
        if plan.selects(example.problem.operation.name)
        and example.backend == (plan.command or plan.backend)
        and example.problem.operation.name in subject.backend.operations()
        and subject.precision(example.problem.dtype) is not None
    }


def _key(check: Check) -> tuple[str, str, str]:
    return check.operation.name, check.dtype, check.id


def _results(todo: list, jobs: int) -> Iterator[tuple]:
    """(stage, key, result) of every task as it ends; the result is None where the task took its process down."""
    if jobs <= 1:
        for stage, key, (function, *arguments) in todo:
            yield stage, key, function(*arguments)
        return
    _one_thread()
    waiting = {(stage, key): (function, *arguments) for stage, key, (function, *arguments) in todo}
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            futures: dict[Future, tuple] = {pool.submit(*task): name for name, task in waiting.items()}
            for future in as_completed(futures):
                result = future.result()
                del waiting[futures[future]]
                yield *futures[future], result
    except BrokenProcessPool:
        yield from _one_by_one(waiting)


def _one_by_one(waiting: dict) -> Iterator[tuple]:
    """The remaining tasks in a pool of one, made anew whenever a task ends its process."""
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    for name, task in waiting.items():
        try:
            yield *name, pool.submit(*task).result()
        except BrokenProcessPool:
            pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            yield *name, None
    pool.shutdown()
