"""The long runs behind the kit's claims, of which the tests sample a part.

=========== ====================================================================================================================
``kills``   makes every fault of the kit to torch, wherever it applies, and records the check that caught it
``shrinks`` shrinks what caught it to a counterexample, and replays that in a new process
``alarms``  runs honest implementations of every operation, which differ in their arithmetic, and counts violations
``agrees``  runs peft or adapters apart from its findings, in float64, on random shapes, and compares results with the reference
=========== ====================================================================================================================

Each works by operation and dtype, and keeps one row for each in ``benchmarks/results``: running a part replaces its rows only.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
import summaries
from about import about

RESULTS = Path(__file__).parent / "results"
ROOT = RESULTS.parents[1]
DTYPES = "float64,float32,bfloat16,float16"


@click.group()
def main():
    """Produce evidence."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _selecting(command):
    """The options that every run has."""
    for option in (
        click.option("--operations", default="*", show_default=True, help="Shell patterns, between commas."),
        click.option("--dtypes", default=DTYPES, show_default=True),
        click.option("--jobs", default=1, show_default=True),
        click.option("--seed", default=0, show_default=True),
    ):
        command = option(command)
    return command


_sampling = click.option("--share", default=1.0, show_default=True, help="Of the faults that apply; drawn by the seed.")


@main.command()
@_selecting
@_sampling
def kills(operations, dtypes, jobs, seed, share):
    """Make every fault to torch; every one must be caught at the standard profile."""
    _gather("kills", _kills, _selected(operations, dtypes), (seed, share), jobs)


def _kills(operation, dtype, seed, share):
    applicable, chosen = _faults(operation, dtype, seed, share)
    verdicts = {f.name: _first_failure(operation, dtype, f, seed) for f in chosen}
    caught = {fault: verdict.id if verdict else "" for fault, verdict in verdicts.items()}
    escaped = [f for f, check in caught.items() if not check]
    raised = [f for f, verdict in verdicts.items() if verdict and "the backend raised" in verdict.message]
    return {"applicable": applicable, "made": len(caught), "escaped": escaped, "raised": raised, "caught_by": caught}


def _faults(operation, dtype, seed, share):
    """How many faults apply to the operation in the dtype, and those of them that are made."""
    from refpeft.operation import find
    from refpeft_conformance.faults import faults_of

    known = faults_of(find(operation), dtype)
    return len(known), random.Random(f"{operation} {dtype} {seed}").sample(known, math.ceil(share * len(known)))


@main.command()
@_selecting
@_sampling
def shrinks(operations, dtypes, jobs, seed, share):
    """Make every fault to torch; every one must leave a minimal counterexample that replays in a new process."""
    _gather("shrinks", _shrinks, _selected(operations, dtypes), (seed, share), jobs)


def _shrinks(operation, dtype, seed, share):
    from refpeft_conformance.counterexample import Counterexample

    applicable, chosen = _faults(operation, dtype, seed, share)
    found, escaped = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for number, fault in enumerate(chosen):
            verdict = _first_failure(operation, dtype, fault, seed, shrinking=True)
            if verdict is None:
                escaped.append(fault.name)
                continue
            counterexample = Counterexample.of(verdict, "torch", fault.name)
            path = counterexample.save(Path(folder) / f"{number:04}")
            arrays = [*verdict.problem.inputs.values(), *verdict.problem.cotangents.values()]
            elements, nonzero = sum(a.size for a in arrays), sum(int((a != 0).sum()) for a in arrays)
            found[str(path)] = [fault.name, counterexample, elements, nonzero]
        replayed = _in_a_new_process(list(found))
    rows = {}
    for path, (fault, counterexample, elements, nonzero) in found.items():
        again = replayed[path]
        rows[fault] = {
            "check": counterexample.check,
            "elements": elements,
            "nonzero": nonzero,
            "minimal": counterexample.minimal,
            "replays": again["fails"] and again["same_bits"] and again["message"] == counterexample.message,
        }
    failed = [f for f, row in rows.items() if not row["replays"]]
    unfinished = [f for f, row in rows.items() if not row["minimal"]]
    counts = {"applicable": applicable, "made": len(rows) + len(escaped), "escaped": escaped}
    return counts | {"failed": failed, "unfinished": unfinished, "counterexamples": rows}


def _first_failure(operation, dtype, fault, seed, *, shrinking=False):
    """The verdict of the first check that catches the fault; golden files, which hold known problems, are left out."""
    from refpeft import plugins
    from refpeft.operation import find
    from refpeft_conformance.checks import checks_of
    from refpeft_conformance.faults import Faulty
    from refpeft_conformance.runner import run
    from refpeft_conformance.subject import Subject

    subject = Subject(Faulty(plugins.backend("torch"), fault))
    for check in checks_of(find(operation), dtype):
        if check.kind != "golden":
            verdict = run(check, subject, random_seed=seed, shrinking=shrinking)
            if verdict.verdict == "FAIL":
                return verdict
    return None


def _in_a_new_process(paths: list[str]) -> dict[str, dict]:
    """What ``refpeft replay PATH --json`` prints of each file; one process, which made none of them, reads all."""
    command = [sys.executable, __file__, "replay"]
    done = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True, check=True)
    return dict(zip(paths, map(json.loads, done.stdout.splitlines())))


@main.command(hidden=True)
def replay():
    """Replay the counterexamples whose paths come on standard input."""
    from click.testing import CliRunner

    from refpeft.cli import main as refpeft

    for path in sys.stdin.read().split("\n"):
        if path:
            done = CliRunner().invoke(refpeft, ["replay", path, "--json"])
            error = {
                "fails": False,
                "same_bits": False,
                "message": f"exit status {done.exit_code}: {done.output.strip()}",
            }
            click.echo(json.dumps(json.loads(done.stdout) if done.exit_code in (0, 1) else error))


@main.command()
@_selecting
@click.option("--examples", default=2000, show_default=True, help="Problems per operation and dtype.")
@click.option("--profile", default="standard", show_default=True, help="Of the checks that they are held to.")
@click.option("--seconds", default=60, show_default=True, help="Of computing, after which no more are drawn.")
def alarms(operations, dtypes, jobs, seed, examples, profile, seconds):
    """Run honest implementations; none may be outside a budget or fail a check."""
    _gather("alarms", _alarms, _selected(operations, dtypes), (seed, examples, profile, seconds), jobs)


def _alarms(operation, dtype, seed, examples, profile, seconds):
    from refpeft_conformance.honest import trial

    held = trial.hold(operation, dtype, examples=examples, seconds=seconds, seed=seed)
    trial.construct(held, seed=seed)
    checks, failed = trial.hold_to_checks(operation, dtype, seed=seed, profile=profile)
    return {
        "problems": held.problems,
        "wanted": examples,
        "large": held.large,
        "runs": held.runs,
        "elements": held.observed.elements,
        "vacuous": held.observed.vacuous,
        "near": held.observed.near,
        "alarms": len(held.alarms),
        "first": held.alarms[:3],
        "profile": profile,
        "checks": checks,
        "failed": failed,
        "worst": max(held.reached.values(), default=None),
        "reached": held.reached,
        "exact": [n for n, budget in held.widest.items() if budget == 0],
        "vacuous only": [n for n, budget in held.widest.items() if budget > 0 and n not in held.reached],
    }


@main.command()
@click.option("--operations", default="*", show_default=True, help="Shell pattern.")
@click.option("--jobs", default=1, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--examples", default=60, show_default=True, help="Problems per operation.")
@click.option("--library", type=click.Choice(["peft", "adapters"]), default="peft", show_default=True)
def agrees(operations, jobs, seed, examples, library):
    """Run a library; each output and gradient must lie within its float64 budget, and near in the norm."""
    from refpeft import plugins

    taken = plugins.backend(f"{library}-apart").operations()
    cases = [
        case for case in _selected(operations, "float64") if case[0] in taken and "float64" not in taken[case[0]].lacks
    ]
    name = {"peft": "agrees", "adapters": "agrees-adapters"}[library]
    _gather(name, _agrees, cases, (seed, examples, library), jobs)


def _agrees(operation, dtype, seed, examples, library):
    from dataclasses import asdict

    from refpeft import plugins
    from refpeft_conformance.agreement import agree
    from refpeft_conformance.subject import Subject

    subject = Subject(plugins.backend(f"{library}-apart"))
    found = agree(subject, operation, dtype, examples=examples, seed=seed)
    frozen = subject.backend.implementation(operation).frozen
    return asdict(found) | {"frozen": frozen, "versions": subject.backend.versions()}


def _selected(operations: str, dtypes: str) -> list[tuple[str, str]]:
    from refpeft.operation import catalogue, matches

    wanted = dtypes.split(",")
    cases = [(n, d) for n, o in catalogue().items() if matches(n, operations) for d in o.dtypes if d in wanted]
    if not cases:
        raise click.UsageError(f"no operation in {dtypes} matches {operations!r}.")
    return cases


def _gather(name: str, work, cases, arguments, jobs) -> None:
    """Work on each case; keep its row as soon as it is there."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for row in pool.map(_timed, [work.__name__] * len(cases), cases, [arguments] * len(cases)):
            _keep(name, row)
            click.echo(f"{row['operation']} {row['dtype']} {row['seconds']} s", err=True)
    click.echo(json.dumps(json.loads((RESULTS / f"{name}.json").read_text())["summary"], indent=1))


def _timed(work: str, case, arguments):
    started = time.process_time()
    found = globals()[work](*case, *arguments)
    spent = time.process_time() - started
    return {"operation": case[0], "dtype": case[1], **about(), "seconds": round(spent, 1), **found}


def _keep(name: str, row: dict) -> None:
    """Put a row in the place of the one that the operation and dtype had."""
    from refpeft.files import atomic_write

    def key(row):
        return row["operation"], row["dtype"]

    path = RESULTS / f"{name}.json"
    others = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = sorted([r for r in others if key(r) != key(row)] + [row], key=key)
    summary, lines = json.dumps(summaries.OF[name.partition("-")[0]](rows), indent=1), ",\n".join(map(json.dumps, rows))
    RESULTS.mkdir(exist_ok=True)
    atomic_write(path, f'{{"summary": {summary},\n"rows": [\n{lines}\n]}}\n'.encode())


if __name__ == "__main__":
    main()
