"""What the rows of the evidence come to."""

from __future__ import annotations

import statistics
from collections import Counter

from refpeft.numerics.formats import FORMATS


def kills(rows: list[dict]) -> dict:
    """Which faults were made, and what caught them."""
    from refpeft_conformance.faults import faults

    kinds = [check.split("-")[2] for row in rows for check in row["caught_by"].values() if check]
    made = {fault for row in rows for fault in row["caught_by"]}
    return {
        "operations": len({row["operation"] for row in rows}),
        "applicable": sum(row["applicable"] for row in rows),
        "made": sum(row["made"] for row in rows),
        "escaped": [[row["operation"], row["dtype"], fault] for row in rows for fault in row["escaped"]],
        "faults": len(made),
        "families": sorted({f.family for f in faults().values() if f.name in made}),
        "by_kind": dict(sorted(Counter(kinds).items())),
    }


def shrinks(rows: list[dict]) -> dict:
    """How many counterexamples replayed, and how small they are."""
    found = [example for row in rows for example in row["counterexamples"].values()]

    def spread(what):
        sizes = sorted(example[what] for example in found)
        return {"median": statistics.median(sizes), "of nine in ten": sizes[len(sizes) * 9 // 10], "largest": sizes[-1]}

    return {
        "operations": len({row["operation"] for row in rows}),
        "applicable": sum(row["applicable"] for row in rows),
        "made": sum(row["made"] for row in rows),
        "replayed": sum(example["replays"] for example in found),
        "minimal": sum(example["minimal"] for example in found),
        "elements": spread("elements") if found else {},
        "nonzero": spread("nonzero") if found else {},
    } | {k: [[r["operation"], r["dtype"], f] for r in rows for f in r[k]] for k in ("escaped", "failed", "unfinished")}


def alarms(rows: list[dict]) -> dict:
    """How many honest results were judged, and how near to their budgets they came."""
    reached = {f"{row['operation']} {row['dtype']} {n}": s for row in rows for n, s in row["reached"].items()}
    worst = {d: [row["worst"] for row in rows if row["dtype"] == d and row["worst"]] for d in FORMATS}
    return {
        "operations": len({row["operation"] for row in rows}),
        "problems": {d: sum(row["problems"] for row in rows if row["dtype"] == d) for d in FORMATS},
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


def agrees(rows: list[dict]) -> dict:
    """How many results of a library were compared, and how far they were apart."""
    shapes = Counter(dict.fromkeys(("tall", "wide", "square", "prime", "rank one"), 0))
    for row in rows:
        shapes.update(row["shapes"])
    return {
        "operations": len(rows),
        "versions": sorted({f"{package} {v}" for row in rows for package, v in row["versions"].items()}),
        "problems": sum(row["problems"] for row in rows),
        "shapes": dict(shapes),
        "results": sum(len(row["shares"]) for row in rows),
        "worst share": max((s for row in rows for s in row["shares"].values()), default=None),
        "worst normwise": max((s for row in rows for s in row["normwise"].values()), default=None),
        "disagreements": [[row["operation"], *row["disagreements"][:1]] for row in rows if row["disagreements"]],
        "without a problem": [row["operation"] for row in rows if not row["problems"]],
        "frozen": [[row["operation"], *row["frozen"]] for row in rows if row["frozen"]],
    }


OF = {"kills": kills, "shrinks": shrinks, "alarms": alarms, "agrees": agrees}
