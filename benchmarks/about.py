"""Of what a benchmark's numbers are: refpeft's commit, the time, and the machine."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def about() -> dict[str, str]:
    """The commit, marked where there are changes beside it, when it was asked for, the machine and Python's version."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT).stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD")[:12]
        + ("+changes" if git("status", "--porcelain", "--", ".", ":!benchmarks/results") else ""),
        "when": datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
