"""The certificate: canonical JSON whose counts follow from its checks and whose seal follows from its content.

It is unsigned: `refpeft_conformance.verification` says whether it is consistent, not who wrote it.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import platform
import zlib
from pathlib import Path

import numpy as np

import refpeft_spec
from refpeft import __version__
from refpeft.errors import FormatError
from refpeft.files import atomic_write
from refpeft.formats.weights import file_of
from refpeft.numerics.formats import FORMATS
from refpeft.operation import catalogue
from refpeft_conformance.certify import Outcome
from refpeft_conformance.counterexample import Counterexample
from refpeft_conformance.plan import trainable
from refpeft_conformance.summary import TRAINING, counts, summary
from refpeft_conformance.verdict import FAIL, PASS
from refpeft_spec.trajectory import trajectories

FORMAT = "refpeft-certificate/1"


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
            "weights_sha256": sha_of_file(file_of(plan.weights)) if plan.weights else "",
            "timeout": plan.timeout,
        },
        "spec": spec_hashes(),
        "undeclared": sorted(set(catalogue()) - declared),
        "unselected": sorted(declared - set(ran)),
        "unknown": list(getattr(backend, "unknown", ())),
        "training": {"declared": backend.training, "trainable": trainable(plan), "known": sorted(trajectories())},
        "reference": counts([v.record() for v in outcome.reference])
        | {"failed": [v.id for v in outcome.reference if v.verdict != PASS]},
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


def sha_of_file(path: str) -> str:
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
