"""DIR.partial, in which a conversion works until DIR can appear: what it may be when a run begins.

``plan.json`` says what is converted and how, ``parts`` has a file for each tensor that is done, ``done`` becomes DIR. A run goes
on in a folder that has its own plan. One with another plan is left alone unless the run is to begin anew, and one without any
plan is somebody else's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from refpeft.errors import FormatError
from refpeft.files import atomic_write, locked, require_new, sweep_up


def begin(out: Path, plan: bytes, *, restart: bool) -> tuple[Path, Callable[[], None]]:
    """The folder to work in for ``out``, new or left by a run of the same plan, and what ends the lock on it.

    Raises
    ------
    FormatError
        If ``out`` exists, its parent does not, or the folder belongs to something else or is another process's at the moment.
    """
    partial = out.parent / f"{out.name}.partial"
    if os.path.lexists(out):
        with contextlib.suppress(FormatError):
            if os.path.lexists(partial) and not (partial / "done").exists() and _plan_of(partial) in (None, plan):
                os.close(locked(partial, "at work"))
                remove(partial)  # of one that was killed when all was done but this
    require_new(out)
    if os.path.lexists(partial):
        _require_ours(partial, plan, restart)
    partial.mkdir(exist_ok=True)
    lock = locked(partial, f"{partial}: another process is at work there; let it end first.")
    try:
        _require_ours(partial, plan, restart)
        if restart or _plan_of(partial) != plan:
            _empty(partial)
        atomic_write(partial / "plan.json", plan)
        for folder in (partial, partial / "parts", partial / "done"):
            folder.mkdir(exist_ok=True)
            sweep_up(folder)
    except BaseException:
        os.close(lock)
        raise
    return partial, lambda: os.close(lock)


def remove(partial: Path) -> None:
    """Remove the folder, its plan last: whenever that is interrupted, a run knows what it finds."""
    _empty(partial)
    shutil.rmtree(partial)


def _empty(partial: Path) -> None:
    for folder in (partial / "parts", partial / "done"):
        if folder.exists():
            shutil.rmtree(folder)
    (partial / "plan.json").unlink(missing_ok=True)


def _require_ours(partial: Path, plan: bytes, restart: bool) -> None:
    """Refuse a folder that another plan has begun, unless all is to begin anew."""
    if _plan_of(partial) not in (None, plan) and not restart:
        raise FormatError(f"{partial} was begun from another model or with other options: --restart begins anew.")


def _plan_of(partial: Path) -> bytes | None:
    """The plan of the run that left the folder; None if it was killed before it had written one.

    Raises
    ------
    FormatError
        If no run left it.
    """
    plan = partial / "plan.json"
    if partial.is_dir() and plan.is_file():
        return plan.read_bytes()
    if not partial.is_dir() or any(path.suffix != ".tmp" and path.name != "lock" for path in partial.iterdir()):
        raise FormatError(f"{partial} is there and not from a conversion: move it away.")
    return None
