"""What follows from a certificate's checks: its headline, its counts, its exit status, and a row for each operation and dtype."""

from __future__ import annotations

import refpeft_spec
from refpeft_conformance.verdict import ERROR, FAIL, PASS, VERDICTS

VACUOUS_LIMIT = 0.05
"""Largest share of vacuous elements that an operation may have in float32, in the mean over its checks."""
TRAINING = "training"
"""The kind of the checks on trajectories, which are of no operation."""
SUBNORMAL = "on subnormal inputs"
"""How the claims end whose problems consist of subnormal numbers."""


def summary(content: dict) -> dict:
    """What follows from the checks: the headline, the counts, and a row for each operation and dtype."""
    records = content["checks"]
    rows: dict[str, dict[str, dict]] = {}
    for record in records:
        row = rows.setdefault(record["operation"], {}).setdefault(record["dtype"], _row())
        row["checks"] += 1
        row["passed"] += record["verdict"] == PASS
        row["unsupported"] += record["verdict"] == "UNSUPPORTED"
        for name in ("examples", "elements", "vacuous", "near"):
            row[name] += record[name]
        for name in ("worst_share", "worst_ulps"):
            row[name] = max(row[name], record[name])
    vacuous = [o for o in rows if _says_too_little(o, content)]
    passed = [o for o, dtypes in rows.items() if o not in vacuous and _passes(o, dtypes, records)]
    trained = {r["operation"] for r in records if r["kind"] == TRAINING}
    counted = len(passed) - len(trained & set(passed)), len(rows) - len(trained)
    operations = _headline(*counted, len(content["undeclared"]), len(content["unselected"]))
    trainings = f"{len(trained & set(passed))} of {len(trained)} trainings" if trained else ""
    reference, smoke = content["reference"], content["smoke"]
    sound = reference["PASS"] == reference["expected"] and all(s["caught_by"] for s in smoke)
    return {
        "harness": "sound" if sound else "unsound",
        "exit_status": _status(records, sound, bool(vacuous) or any(s["fails"] for s in content["saved"])),
        "headline": ", ".join(filter(None, (operations, trainings))),
        "passed_operations": passed,
        "counts": counts(records),
        "operations": rows,
        "outside": _outside(records),
        "vacuous_over_limit": vacuous,
    }


def _headline(passed: int, ran: int, undeclared: int, unselected: int) -> str:
    """Of all that there is, unless some of it was not asked for; empty where nothing of it was, but trainings."""
    if not ran:
        return ""
    if not unselected:
        return f"{passed} of {ran + undeclared} operations"
    return f"{passed} of {ran} selected operations (of {ran + undeclared + unselected} in all)"


def _says_too_little(operation: str, content: dict) -> bool:
    """Whether too many of the operation's elements in float32 are vacuous.

    Where the backend declares that it flushes subnormal numbers, nothing can be said of them, and they do not count.
    """
    flushed = content["subject"]["precision"].get("float32", {}).get("flush_to_zero", False)
    counted = [
        r
        for r in content["checks"]
        if r["operation"] == operation and r["dtype"] == "float32" and not (flushed and SUBNORMAL in r["claim"])
    ]
    return vacuous_share(counted) > VACUOUS_LIMIT


def vacuous_share(records: list[dict]) -> float:
    """The share of vacuous elements, in the mean over checks: those with large arrays count no more than others."""
    shares = [r["vacuous"] / r["elements"] for r in records if r["elements"]]
    return sum(shares) / len(shares) if shares else 0.0


def _status(records: list[dict], sound: bool, flawed: bool) -> int:
    """0: everything passed. 1: something failed. 2: a broken harness, or nothing was run."""
    verdicts = {r["verdict"] for r in records}
    if ERROR in verdicts or not sound:
        return 2
    if FAIL in verdicts or flawed:
        return 1
    return 0 if PASS in verdicts else 2


def _outside(records: list[dict]) -> dict[str, dict[str, int]]:
    """How many problems of each operation the backend did not take, by its reason."""
    found: dict[str, dict[str, int]] = {}
    for record in records:
        for reason, count in record["outside"].items():
            reasons = found.setdefault(record["operation"], {})
            reasons[reason] = reasons.get(reason, 0) + count
    return found


def _row() -> dict:
    return {
        "checks": 0,
        "passed": 0,
        "unsupported": 0,
        "examples": 0,
        "elements": 0,
        "vacuous": 0,
        "near": 0,
        "worst_share": 0.0,
        "worst_ulps": 0.0,
    }


def _passes(operation: str, dtypes: dict, records: list[dict]) -> bool:
    """Every must-pass kind of the operation ran and passed, and nothing failed."""
    own = [r for r in records if r["operation"] == operation]
    if any(r["verdict"] in (FAIL, ERROR) for r in own):
        return False
    known = operation in refpeft_spec.declared()
    must = refpeft_spec.must_pass(operation) if known else sorted({r["kind"] for r in own})
    return all(any(r["kind"] == kind and r["verdict"] == PASS for r in own) for kind in must)


def counts(records: list[dict]) -> dict[str, int]:
    run = [r for r in records if r["verdict"] in (PASS, FAIL, ERROR)]
    return {"expected": len(records), "run": len(run)} | {v: sum(r["verdict"] == v for r in records) for v in VERDICTS}
