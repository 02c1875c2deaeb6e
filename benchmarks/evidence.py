"""The long runs behind the kit's claims, of which the tests sample a part.

=========== ==============================================================================================
``kills``   makes every fault of the kit to torch, wherever it applies, and records the check that caught it
``shrinks`` shrinks what caught it to a counterexample, and replays that in a new process
``alarms``  runs honest implementations of every operation, which differ in their arithmetic, and counts violations
=========== ==============================================================================================

Each works by operation and dtype, and keeps one row for each in ``benchmarks/results``: running a part replaces its rows only.
"""

from __future__ import annotations

import datetime
import fnmatch
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click

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
        click.option("--operations", default="*", show_default=True, help="Shell pattern."),
        click.option("--dtypes", default=DTYPES, show_default=True),
        click.option("--jobs", default=1, show_default=True),
        click.option("--seed", default=0, show_default=True),
    ):
        command = option(command)
    return command


@main.command()
@_selecting
def kills(operations, dtypes, jobs, seed):
    """Make every fault to torch; every one must be caught at the standard profile."""
    _gather("kills", _kills, _selected(operations, dtypes), (seed,), jobs)


def _kills(operation, dtype, seed):
    from refpeft.operation import find
    from refpeft_conformance.faults import faults_of

    verdicts = {f.name: _first_failure(operation, dtype, f, seed) for f in faults_of(find(operation), dtype)}
    caught = {fault: verdict.id if verdict else "" for fault, verdict in verdicts.items()}
    return {"made": len(caught), "escaped": [f for f, check in caught.items() if not check], "caught_by": caught}


@main.command()
@_selecting
def shrinks(operations, dtypes, jobs, seed):
    """Make every fault to torch; every one must leave a minimal counterexample that replays in a new process."""
    _gather("shrinks", _shrinks, _selected(operations, dtypes), (seed,), jobs)


def _shrinks(operation, dtype, seed):
    from refpeft.operation import find
    from refpeft_conformance.counterexample import Counterexample
    from refpeft_conformance.faults import faults_of

    found, escaped = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for number, fault in enumerate(faults_of(find(operation), dtype)):
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
    return {"made": len(rows) + len(escaped), "escaped": escaped, "failed": failed, "unfinished": unfinished} | {
        "counterexamples": rows
    }


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
@click.option("--seconds", default=60, show_default=True, help="Of computing, after which no more are drawn.")
def alarms(operations, dtypes, jobs, seed, examples, seconds):
    """Run honest implementations; none may be outside a budget or fail a check."""
    _gather("alarms", _alarms, _selected(operations, dtypes), (seed, examples, seconds), jobs)


def _alarms(operation, dtype, seed, examples, seconds):
    from refpeft_conformance.honest import trial

    held = trial.hold(operation, dtype, examples=examples, seconds=seconds, seed=seed)
    trial.construct(held, seed=seed)
    checks, failed = trial.hold_to_checks(operation, dtype, seed=seed)
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
        "checks": checks,
        "failed": failed,
        "worst": max(held.reached.values(), default=None),
        "reached": held.reached,
        "exact": [n for n, budget in held.widest.items() if budget == 0],
        "vacuous only": [n for n, budget in held.widest.items() if budget > 0 and n not in held.reached],
    }


def _selected(operations: str, dtypes: str) -> list[tuple[str, str]]:
    from refpeft.operation import catalogue

    wanted = dtypes.split(",")
    cases = [
        (n, d) for n, o in catalogue().items() if fnmatch.fnmatchcase(n, operations) for d in o.dtypes if d in wanted
    ]
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
    return {"operation": case[0], "dtype": case[1], **_about(), "seconds": round(spent, 1), **found}


def _about() -> dict:
    def git(*words):
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT).stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD")[:12]
        + ("+changes" if git("status", "--porcelain", "--", ".", ":!benchmarks/results") else ""),
        "when": datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def _keep(name: str, row: dict) -> None:
    """Put a row in the place of the one that the operation and dtype had."""
    path, key = RESULTS / f"{name}.json", (row["operation"], row["dtype"])
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = sorted(
        [r for r in rows if (r["operation"], r["dtype"]) != key] + [row], key=lambda r: (r["operation"], r["dtype"])
    )
    summary = json.dumps(SUMMARIES[name](rows), indent=1)
    lines = ",\n".join(json.dumps(r) for r in rows)
    RESULTS.mkdir(exist_ok=True)
    path.write_text(f'{{"summary": {summary},\n"rows": [\n{lines}\n]}}\n')


def _summary_of_kills(rows):
    from refpeft_conformance.faults import faults

    kinds = [check.split("-")[2] for row in rows for check in row["caught_by"].values() if check]
    made = {fault for row in rows for fault in row["caught_by"]}
    return {
        "operations": len({row["operation"] for row in rows}),
        "made": sum(row["made"] for row in rows),
        "escaped": [[row["operation"], row["dtype"], fault] for row in rows for fault in row["escaped"]],
        "faults": len(made),
        "families": sorted({f.family for f in faults().values() if f.name in made}),
        "by_kind": dict(sorted(Counter(kinds).items())),
    }


def _summary_of_shrinks(rows):
    found = [example for row in rows for example in row["counterexamples"].values()]

    def spread(what):
        sizes = sorted(example[what] for example in found)
        return {"median": statistics.median(sizes), "of nine in ten": sizes[len(sizes) * 9 // 10], "largest": sizes[-1]}

    return {
        "operations": len({row["operation"] for row in rows}),
        "made": sum(row["made"] for row in rows),
        "replayed": sum(example["replays"] for example in found),
        "minimal": sum(example["minimal"] for example in found),
        "elements": spread("elements") if found else {},
        "nonzero": spread("nonzero") if found else {},
    } | {k: [[r["operation"], r["dtype"], f] for r in rows for f in r[k]] for k in ("escaped", "failed", "unfinished")}


def _summary_of_alarms(rows):
    reached = {f"{row['operation']} {row['dtype']} {n}": s for row in rows for n, s in row["reached"].items()}
    worst = {d: [row["worst"] for row in rows if row["dtype"] == d and row["worst"]] for d in DTYPES.split(",")}
    return {
        "operations": len({row["operation"] for row in rows}),
        "problems": {d: sum(row["problems"] for row in rows if row["dtype"] == d) for d in DTYPES.split(",")},
        "large": sum(row["large"] for row in rows),
        "runs": sum(row["runs"] for row in rows),
        "alarms": sum(row["alarms"] for row in rows),
        "checks": sum(row["checks"] for row in rows),
        "failed": [check for row in rows for check in row["failed"]],
        "cut short": [
            [row["operation"], row["dtype"], row["problems"]] for row in rows if row["problems"] < row["wanted"]
        ],
        "worst": {d: max(shares, default=None) for d, shares in worst.items()},
        "budgets": len(reached),
        "moved only": sum(len(row["exact"]) for row in rows),
        "vacuous only": [[row["operation"], row["dtype"], n] for row in rows for n in row["vacuous only"]],
        "least reached": dict(sorted(reached.items(), key=lambda item: item[1])[:5]),
    }


SUMMARIES = {"kills": _summary_of_kills, "shrinks": _summary_of_shrinks, "alarms": _summary_of_alarms}


if __name__ == "__main__":
    main()
