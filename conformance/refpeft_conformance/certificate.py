"""The certificate: canonical JSON whose counts follow from its checks and whose seal follows from its content.

It is unsigned. `verify` proves that it is consistent with itself and, on a sample, with what the backend does here; it does not
prove who wrote it.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import platform
import random
import zlib
from pathlib import Path

import numpy as np

import refpeft_spec
from refpeft import __version__
from refpeft.errors import CapabilityError, FormatError
from refpeft.files import atomic_write
from refpeft.formats.weights import file_of
from refpeft.numerics.formats import FORMATS
from refpeft.operation import catalogue
from refpeft_conformance.certify import Outcome, Plan, execute, planned
from refpeft_conformance.counterexample import Counterexample
from refpeft_conformance.plan import trainable
from refpeft_conformance.verdict import ERROR, FAIL, PASS, VERDICTS
from refpeft_spec.trajectory import trajectories

FORMAT = "refpeft-certificate/1"
VACUOUS_LIMIT = 0.05
"""Largest share of vacuous elements that an operation may have in float32, in the mean over its checks."""
TRAINING = "training"
"""The kind of the checks on trajectories, which are of no operation."""
SUBNORMAL = "on subnormal inputs"
"""How the claims end whose problems consist of subnormal numbers."""


def build(outcome: Outcome, folder: Path) -> dict:
    """The certificate of an outcome; its counterexamples are written into ``folder``.

    Parameters
    ----------
    outcome : Outcome
    folder : Path
        Exists.

    Returns
    -------
    dict
        Plain data, sealed.
    """
    plan, subject = outcome.plan, outcome.plan.subject()
    backend = subject.backend
    counterexamples = []
    for verdict in outcome.verdicts:
        if verdict.verdict == FAIL and verdict.problem is not None:
            path = Counterexample.of(verdict, plan.command or plan.backend, plan.fault, subject.device).save(
                folder / "counterexamples"
            )
            counterexamples.append(
                {
                    "check": verdict.id,
                    "file": str(path.relative_to(folder)),
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    "minimal": verdict.minimal,
                    "message": verdict.message,
                    "explanation": list(verdict.explanation),
                    "dims": {n: d for n, d in verdict.problem.dims.items() if n not in verdict.problem.attributes},
                    "attributes": verdict.problem.attributes,
                }
            )
    records = [v.record() for v in outcome.verdicts]
    ran = sorted({r["operation"] for r in records if r["kind"] != TRAINING})
    declared = set(backend.operations()) & set(catalogue())
    content = {
        "format": FORMAT,
        "refpeft": __version__,
        "created": datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat(),
        "subject": {
            "backend": plan.backend,
            "name": backend.name,
            "command": plan.command,
            "fault": plan.fault,
            "device": subject.device,
            "versions": backend.versions(),
            "deterministic": backend.deterministic,
            "precision": {d: p.describe() for d in FORMATS if (p := backend.precision(d)) is not None},
            "source": {n: backend.implementation(n).source for n in ran},
            "frozen": {n: list(frozen) for n in ran if (frozen := backend.implementation(n).frozen)},
        },
        "environment": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "system": platform.system(),
            "machine": platform.machine(),
        },
        "plan": {
            "operations": plan.operations,
            "only": plan.only,
            "profile": plan.profile,
            "seed": plan.seed,
            "weights": plan.weights,
            "weights_sha256": _sha_of_file(file_of(plan.weights)) if plan.weights else "",
            "timeout": plan.timeout,
        },
        "spec": spec_hashes(),
        "undeclared": sorted(set(catalogue()) - declared),
        "unselected": sorted(declared - set(ran)),
        "unknown": list(getattr(backend, "unknown", ())),
        "training": {"declared": backend.training, "trainable": trainable(plan), "known": sorted(trajectories())},
        "reference": _counts([v.record() for v in outcome.reference]),
        "remembered": outcome.remembered,
        "merging": outcome.merging,
        "smoke": [
            {"operation": o, "dtype": d, "fault": fault, "caught_by": check}
            for (o, d), found in sorted(outcome.smoke.items())
            for fault, check in found
        ],
        "saved": [{"file": name, "fails": message} for name, message in sorted(outcome.saved.items())],
        "counterexamples": counterexamples,
        "checks": records,
    }
    content |= summary(content)
    return content | {"seal": seal(content)}


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
        "counts": _counts(records),
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


def _counts(records: list[dict]) -> dict[str, int]:
    run = [r for r in records if r["verdict"] in (PASS, FAIL, ERROR)]
    return {"expected": len(records), "run": len(run)} | {v: sum(r["verdict"] == v for r in records) for v in VERDICTS}


def spec_hashes() -> dict[str, str]:
    """SHA-256 of the spec's pages, of the must-pass list and of the golden files, as this installation has them."""
    pages = {
        name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in sorted(refpeft_spec.pages().items())
    }
    must_pass = {name: list(refpeft_spec.must_pass(name)) for name in sorted(refpeft_spec.declared())}
    return {"pages": _sha(pages), "must_pass": _sha(must_pass)}


def seal(content: dict) -> str:
    """SHA-256 of the canonical JSON of everything but the seal itself."""
    return _sha({k: v for k, v in content.items() if k != "seal"})


def _sha(content) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def _sha_of_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(content) -> str:
    """JSON with sorted keys and no spaces: equal content, equal bytes."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=True)


def write(certificate: dict, path: Path) -> None:
    """Write the certificate, sorted and indented, atomically."""
    atomic_write(path, (json.dumps(certificate, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode())


def read(path: Path) -> dict:
    """Read a certificate, gzipped or not.

    Raises
    ------
    FormatError
        If it is not one.
    """
    try:
        content = json.loads(gzip.decompress(raw) if (raw := Path(path).read_bytes())[:2] == b"\x1f\x8b" else raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FormatError(f"{path} is no refpeft certificate: its format must be {FORMAT!r}.")
    return content


def verify(
    content: dict, folder: Path | None = None, *, share: float = 0.02, rerun: bool = True, command: str = ""
) -> list[str]:
    """What is wrong with a certificate: empty if it is consistent.

    Parameters
    ----------
    content : dict
    folder : Path, optional
        Where its counterexamples lie; their hashes are compared.
    share : float
        Share of the checks to run again, chosen by the seal; at least one.
    rerun : bool
        Whether to run any at all.
    command : str
        The program to run again, where the certificate is a program's. What a certificate names is never started.

    Returns
    -------
    list of str
        One sentence for each inconsistency.
    """
    try:
        wrong = _inconsistencies(content) + (_changed_files(content, folder) if folder else [])
        return wrong + (_differences(content, share, command) if rerun and not wrong else [])
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"the certificate lacks a field or has it in another form: {error!r}.") from error


def _inconsistencies(content: dict) -> list[str]:
    wrong = []
    if content["seal"] != seal(content):
        wrong.append("the seal does not match the content: something was changed after certification.")
    for name, value in summary(content).items():
        if content[name] != value:
            wrong.append(f"{name} does not follow from the checks: it says {content[name]!r}, they give {value!r}.")
    for record in content["checks"]:
        if record["verdict"] not in VERDICTS:
            wrong.append(f"{record['id']}: verdict {record['verdict']!r} is none of {', '.join(VERDICTS)}.")
    if content["spec"] != spec_hashes():
        wrong.append("the spec of this installation is not the one it was certified against.")
    return wrong


def _changed_files(content: dict, folder: Path) -> list[str]:
    wrong = []
    for example in content["counterexamples"]:
        path = folder / "counterexamples" / Path(example["file"]).name
        if not path.is_file():
            wrong.append(f"the counterexample {path} is missing.")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != example["sha256"]:
            wrong.append(f"the counterexample {path} is not the one that was certified.")
    return wrong


def _present(path: str) -> str:
    """The path.

    Raises
    ------
    CapabilityError
        If no file is there.
    """
    if not Path(path).is_file():
        raise CapabilityError(
            f"the certificate was made with the weights file {path!r}, which is not here: put it there, or give --no-rerun."
        )
    return path


def _differences(content: dict, share: float, command: str) -> list[str]:
    said, subject = content["plan"], content["subject"]
    if subject["command"] and not command:
        raise CapabilityError(
            "the certificate is a program's: give --command PROGRAM to run its sample again, or --no-rerun."
        )
    plan = Plan(
        subject["backend"],
        command,
        subject["device"],
        subject["fault"],
        said["operations"],
        said["only"],
        said["profile"],
        said["seed"],
        said["weights"],
        said["timeout"],
    )
    if plan.weights and _sha_of_file(_present(file_of(plan.weights))) != said["weights_sha256"]:
        return [f"the weights file {file_of(plan.weights)} is not the one that was certified with."]
    checks = {c.id: c for c in planned(plan)}
    records = {r["id"]: r for r in content["checks"]}
    if checks.keys() != records.keys():
        missing = sorted(checks.keys() ^ records.keys())
        return [f"the checks are not those of this installation: {len(missing)} differ, {missing[0]} among them."]
    chosen = random.Random(content["seal"]).sample(sorted(records), max(1, round(share * len(records))))
    wrong = []
    for name in chosen:
        check = checks[name]
        verdict = execute(plan, check.operation.name, check.dtype, name)
        if verdict.verdict != records[name]["verdict"]:
            wrong.append(
                f"{name}: the certificate says {records[name]['verdict']}, running it again gives {verdict.verdict}."
            )
    return wrong
