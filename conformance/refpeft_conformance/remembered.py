"""What the harness has shown before on this machine: checks that the reference passed, and smoke faults that were caught.

Every certification asks both first, and they take longer than the backend itself. Successes are kept in the user's cache under a
hash of all that they follow from: the sources of refpeft, of the kit and of the spec, the libraries, and the machine. A
certificate says how many were remembered. Nothing is lost with the cache, and ``--fresh`` leaves it aside.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from contextlib import suppress
from pathlib import Path

import refpeft
import refpeft_conformance
import refpeft_spec
from refpeft.files import atomic_write
from refpeft.operation import find
from refpeft_conformance.verdict import PASS, Verdict
from refpeft_conformance.workers import Lost
from refpeft_spec.trajectory import trajectories

TELLING = {
    "certificate.py",
    "commands.py",
    "hooks.py",
    "plot.py",
    "pytest_plugin.py",
    "remembered.py",
    "report.py",
    "summary.py",
    "terminal.py",
    "verification.py",
}
"""Files of the kit that tell of results and give none; nor do its templates."""
LIBRARIES = ("numpy", "scipy", "hypothesis", "ml_dtypes", "mpmath")


def recall() -> dict[str, list]:
    """Successes by what was asked; empty where there are none, or they cannot be read."""
    with suppress(OSError, ValueError):
        known = json.loads(_path().read_text("utf-8"))
        if isinstance(known, dict):
            return known
    return {}


def keep(successes: dict[str, list]) -> None:
    """Add to what is kept; where the cache cannot be written, nothing is."""
    with suppress(OSError):
        _path().parent.mkdir(parents=True, exist_ok=True)
        atomic_write(_path(), json.dumps(recall() | successes).encode())


def success(question: str, operation: str, result) -> dict[str, list]:
    """What is kept of an answer: a verdict of PASS, or faults that were all caught; nothing of any other, or of none.

    Nothing either where the operation is a plugin's, which is not in the hash.

    Parameters
    ----------
    question, operation : str
    result : Verdict, list of (fault, check), or Lost
    """
    own = operation in trajectories() or find(operation).__module__.startswith("refpeft.")
    if isinstance(result, Lost) or not own:
        return {}
    if isinstance(result, Verdict):
        return {question: []} if result.verdict == PASS else {}
    return {question: result} if all(check for _, check in result) else {}


def _path() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "refpeft" / "harness" / f"{_foundation()}.json"


@functools.cache
def _foundation() -> str:
    """A hash of everything but the question."""
    known = hashlib.sha256(f"{platform.python_version()} {platform.machine()} {platform.processor()}".encode())
    for name in LIBRARIES:
        known.update(f"{name} {importlib.metadata.version(name)} ".encode())
    for package in (refpeft, refpeft_conformance, refpeft_spec):
        root = Path(package.__path__[0])
        for path in sorted(p for p in root.rglob("*") if p.is_file() and p.suffix not in (".pyc", ".html")):
            if package is refpeft_conformance and path.name in TELLING:
                continue
            content = path.read_bytes()
            known.update(f"{path.relative_to(root)} {len(content)} ".encode() + content)
    return known.hexdigest()[:32]
