"""The report: the certificate as one self-contained HTML page."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from refpeft.files import atomic_write
from refpeft.numerics.formats import FORMATS, as_format
from refpeft_conformance.checks import KINDS
from refpeft_conformance.plot import axis, dots, histogram
from refpeft_conformance.terminal import training, unexampled

FEW = 20
"""Up to how many operations all families stand open."""

_WORDS = {0: "PASS", 1: "FAIL", 2: "ERROR"}


def render(certificate: dict) -> str:
    """The page. It refers to nothing outside itself."""
    families = _families(certificate)
    return _template().render(
        c=certificate,
        verdict=_WORDS[certificate["exit_status"]],
        reasons=_reasons(certificate),
        families=families,
        worst=max((r["worst_share"] for r in certificate["checks"]), default=0.0),
        lanes=[(d, _plot(histogram, _of(certificate, dtype=d))) for d in _dtypes(certificate)],
        axis=axis(),
        precision=[(d, p) for d in FORMATS if (p := certificate["subject"]["precision"].get(d))],
        failures=_failures(certificate),
        training=training(certificate),
    )


@functools.cache
def _template() -> Template:
    """The page's, compiled once in a process."""
    environment = Environment(
        loader=PackageLoader("refpeft_conformance"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = lambda dtype: as_format(dtype).short
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["share"] = _share
    return environment.get_template("report.html")


def write(certificate: dict, path: Path) -> None:
    """Write the page atomically."""
    atomic_write(path, render(certificate).encode())


def _share(number: float) -> str:
    """A share of the budget in three digits."""
    if number == 0 or math.isinf(number):
        return "∞" if number else "0"
    return f"{number:.3f}" if number < 10 else f"{number:,.0f}" if number < 1e6 else f"{number:.1e}"


def _checks(number: int) -> str:
    return f"{number:,} check" + ("" if number == 1 else "s")


def _dtypes(certificate: dict) -> list[str]:
    found = {r["dtype"] for r in certificate["checks"]}
    return [d for d in FORMATS if d in found]


def _of(certificate: dict, **fields) -> list[dict]:
    return [r for r in certificate["checks"] if all(r[n] == v for n, v in fields.items())]


def _plot(kind: Callable[[list[float], str], Markup], records: list[dict]) -> Markup:
    shares = [r["worst_share"] for r in records if r["worst_share"] > 0]
    worst = f"the largest is {_share(max(shares))}" if shares else "none has a budget to use"
    return kind(shares, f"Shares of the budget used by {_checks(len(shares))}: {worst}.")


def _families(certificate: dict) -> list[dict]:
    """The operations by what their names start with, each family with its own counts and plot."""
    grouped: dict[str, list[dict]] = {}
    records: dict[str, list[dict]] = {}
    for record in certificate["checks"]:
        records.setdefault(record["operation"], []).append(record)
    for name, found in sorted(records.items()):
        grouped.setdefault(name.partition(".")[0], []).append(_operation(certificate, name, found))
    few = len(records) <= FEW
    return [
        {
            "name": family,
            "operations": operations,
            "passed": sum(o["passes"] for o in operations),
            "open": few or not all(o["passes"] for o in operations),
            "checks": _counts([r for o in operations for r in o["records"]]),
            "worst": max(o["worst"] for o in operations),
            "plot": _plot(histogram, [r for o in operations for r in o["records"]]),
        }
        for family, operations in grouped.items()
    ]


def _operation(certificate: dict, name: str, records: list[dict]) -> dict:
    dtypes = [d for d in FORMATS if d in certificate["operations"][name]]
    return {
        "name": name,
        "passes": name in certificate["passed_operations"],
        "source": certificate["subject"]["source"].get(name, "own"),
        "frozen": certificate["subject"].get("frozen", {}).get(name, []),
        "dtypes": {d: _counts([r for r in records if r["dtype"] == d]) for d in dtypes},
        "rows": certificate["operations"][name],
        "claims": _claims(records),
        "unsupported": sorted({r["message"] for r in records if r["verdict"] == "UNSUPPORTED"}),
        "outside": certificate["outside"].get(name, {}),
        "counted": _counted(records),
        "worst": max(r["worst_share"] for r in records),
        "plot": _plot(dots, records),
        "records": records,
    }


def _counted(records: list[dict]) -> dict[str, int]:
    """What the backend counted over all checks, by name."""
    total: dict[str, int] = {}
    for record in records:
        for name, count in record["counted"].items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def _counts(records: list[dict]) -> dict:
    held = [r for r in records if r["verdict"] != "UNSUPPORTED"]
    return {"passed": sum(r["verdict"] == "PASS" for r in held), "run": len(held)}


def _claims(records: list[dict]) -> dict[str, dict[str, dict[str, dict]]]:
    """Records by kind, claim and dtype."""
    found: dict[str, dict[str, dict[str, dict]]] = {}
    for record in sorted(records, key=lambda r: KINDS.index(r["kind"])):
        found.setdefault(record["kind"], {}).setdefault(record["claim"], {})[record["dtype"]] = record
    return found


def _failures(certificate: dict) -> list[dict]:
    """Counterexamples by operation, the most telling one first: explained by one fault, then minimal, then small."""
    records = {r["id"]: r for r in certificate["checks"]}
    grouped: dict[str, list[dict]] = {}
    for example in certificate["counterexamples"]:
        record = records[example["check"]]
        shown = example | {name: record[name] for name in ("operation", "dtype", "kind", "claim")}
        grouped.setdefault(record["operation"], []).append(shown)

    def telling(example):
        return len(example["explanation"]) != 1, not example["minimal"], len(example["message"])

    return [
        {"operation": name, "first": min(found, key=telling), "all": found} for name, found in sorted(grouped.items())
    ]


def _reasons(certificate: dict) -> list[str]:
    """Why the certificate is no pass, in sentences."""
    counts, smoke, reference = certificate["counts"], certificate["smoke"], certificate["reference"]
    missed = [s for s in smoke if not s["caught_by"]]
    reasons = []
    if counts["FAIL"]:
        operations = sorted({r["operation"] for r in _of(certificate, verdict="FAIL")})
        reasons.append(f"{_checks(counts['FAIL'])} of {_listed(operations)} failed.")
    reasons += [f"{r['id']} failed: {r['message']}" for r in unexampled(certificate)]
    reasons += [f"{r['id']} could not be judged: {_first_line(r)}" for r in _of(certificate, verdict="ERROR")]
    if certificate["vacuous_over_limit"]:
        reasons.append(f"Too many budgets say nothing in {_listed(certificate['vacuous_over_limit'])}.")
    reasons += [
        f"The earlier counterexample {s['file']} still fails: {s['fails']}" for s in certificate["saved"] if s["fails"]
    ]
    if reference["PASS"] != reference["expected"]:
        reasons.append(f"The reference passed only {reference['PASS']:,} of its {reference['expected']:,} checks.")
    reasons += [f"The reference does not pass {check}." for check in reference.get("failed", ())]
    reasons += [f"No check caught the fault “{s['fault']}” made to {s['operation']} in {s['dtype']}." for s in missed]
    if not counts["PASS"]:
        reasons.append("Nothing passed.")
    return reasons


def _first_line(record: dict) -> str:
    return (record["message"].splitlines() or ["no reason given"])[0]


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
