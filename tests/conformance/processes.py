"""Whether processes are still there, for tests that nothing is left behind."""

from __future__ import annotations

import time
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_gone(note: Path, seconds: float = 8.0) -> bool:
    """Whether every process whose id stands in a file ends within some seconds."""
    deadline = time.monotonic() + seconds
    pids = {int(line) for line in note.read_text().split()}
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.05)
    return bool(pids) and not any(map(alive, pids))
