"""The long runs behind the kit's claims, of which the tests sample a part.

``python benchmarks/evidence.py kills`` makes every fault of the kit to torch, for every operation and dtype to which it applies,
and records the check that caught it. ``python benchmarks/evidence.py alarms`` runs honest backends that differ in their order of
summation, and counts violations. Each writes a JSON file with commit and time into ``benchmarks/results``.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click

RESULTS = Path(__file__).parent / "results"


@click.group()
def main():
    """Produce evidence."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@main.command()
@click.option("--operations", default="*", show_default=True)
@click.option("--dtypes", default="float32,bfloat16,float16,float64", show_default=True)
@click.option("--jobs", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
def kills(operations, dtypes, jobs, seed):
    """Make every fault to torch; every one must be caught at the standard profile."""
    import fnmatch

    from refpeft.operation import catalogue
    from refpeft_conformance.faults import faults_of

    cases = [
        (name, dtype, fault.name, seed)
        for name, operation in catalogue().items()
        if fnmatch.fnmatchcase(name, operations)
        for dtype in dtypes.split(",")
        if dtype in operation.dtypes
        for fault in faults_of(operation, dtype)
    ]
    started = time.time()
    rows = _map(_kill, cases, jobs)
    escaped = [row for row in rows if not row["caught_by"]]
    by_kind: dict[str, int] = {}
    for row in rows:
        kind = row["caught_by"].split("-")[2] if row["caught_by"] else "none"
        by_kind[kind] = by_kind.get(kind, 0) + 1
    families = sorted({row["family"] for row in rows})
    summary = {
        "made": len(rows),
        "caught": len(rows) - len(escaped),
        "faults": len({r["fault"] for r in rows}),
        "families": families,
        "by_kind": by_kind,
    }
    _write("kills", summary | {"seed": seed, "seconds": round(time.time() - started), "escaped": escaped, "rows": rows})
    click.echo(json.dumps(summary | {"escaped": escaped}, indent=1))


def _kill(case):
    operation, dtype, fault, seed = case
    from refpeft import plugins
    from refpeft_conformance.certify import caught_by
    from refpeft_conformance.faults import Faulty, faults

    found = faults()[fault]
    caught = caught_by(Faulty(plugins.backend("torch"), found), operation, dtype, seed)
    return {"operation": operation, "dtype": dtype, "fault": fault, "family": found.family, "caught_by": caught}


@main.command()
@click.option("--examples", default=10_000, show_default=True, help="Per dtype, over all orders and regimes.")
@click.option("--jobs", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
def alarms(examples, jobs, seed):
    """Run honest backends; none may be outside a budget."""
    from refpeft_conformance.summation import ORDERS

    honest = [(order, fused) for order in ORDERS for fused in (False, True)]
    each = -(-examples // len(honest))
    cases = [
        (order, fused, dtype, each, seed)
        for dtype in ("float32", "bfloat16", "float16", "float64")
        for order, fused in honest
    ]
    started = time.time()
    rows = _map(_alarm, cases, jobs)
    totals = {
        d: sum(r["examples"] for r in rows if r["dtype"] == d) for d in ("float32", "bfloat16", "float16", "float64")
    }
    worst = {d: max(r["worst_share"] for r in rows if r["dtype"] == d) for d in totals}
    summary = {"examples": totals, "alarms": sum(r["alarms"] for r in rows), "worst_share": worst}
    _write("alarms", summary | {"seed": seed, "seconds": round(time.time() - started), "rows": rows})
    click.echo(json.dumps(summary, indent=1))


def _alarm(case):
    order, fused, dtype, examples, seed = case
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    from refpeft_conformance.strategies import problems, regimes_of
    from refpeft_conformance.subject import Subject
    from refpeft_conformance.summation import SummingBackend
    from refpeft_conformance.verdict import Observation, Violation

    subject, observed, violations = Subject(SummingBackend(order, fused)), Observation(), []
    regimes = [r for r in regimes_of("lora.linear") if r != "long"]
    drawn = st.sampled_from(regimes * 9 + ["long"] * len(regimes)).flatmap(
        lambda r: problems("lora.linear", dtype=dtype, regime=r)
    )

    @seeded(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn)
    def hold(problem):
        observed.examples += 1
        for gradients in (False, True):
            try:
                subject.hold(problem, observed, gradients=gradients)
            except Violation as violation:
                violations.append(violation.message)

    hold()
    return {
        "order": order,
        "fused": fused,
        "dtype": dtype,
        "examples": observed.examples,
        "elements": observed.elements,
        "alarms": len(violations),
        "first": violations[:1],
        "worst_share": observed.worst_share,
    }


def _map(function, cases, jobs):
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, cases, chunksize=max(1, len(cases) // (jobs * 20))))


def _write(name: str, content: dict) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
    ).stdout.strip()
    dirty = bool(
        subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, cwd=RESULTS.parent
        ).stdout.strip()
    )
    about = {
        "commit": commit + ("+changes" if dirty else ""),
        "when": datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(about | content, indent=1) + "\n")


if __name__ == "__main__":
    main()
