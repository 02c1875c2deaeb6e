"""DIR.partial, in which a conversion works until DIR can appear: what it may be when a run begins.

``plan.json`` says what is converted and how, ``parts`` has a file for each tensor that is done, ``done`` becomes DIR. A run goes
on in a folder that has its own plan. One with another plan is left alone unless the run is to begin anew, and one without any
plan is somebody else's.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from refpeft.errors import FormatError
from refpeft.files import atomic_write


def begin(out: Path, plan: bytes, *, restart: bool) -> Path:
    """The folder to work in for ``out``, new or left by a run of the same plan.

    Raises
    ------
    FormatError
        If ``out`` exists, its parent does not, or the folder belongs to something else.
    """
    if os.path.lexists(out):
        raise FormatError(f"{out} exists already, expected the name of a new folder.")
    if not out.parent.is_dir():
        raise FormatError(f"{out} cannot be written because the folder {out.parent} does not exist.")
    partial = out.with_name(out.name + ".partial")
    if os.path.lexists(partial):
        found = _plan_of(partial)
        if found is not None and found != plan and not restart:
            raise FormatError(f"{partial} was begun from another model or with other options: --restart begins anew.")
        if found != plan or restart:
            shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    atomic_write(partial / "plan.json", plan)
    for folder in (partial / "parts", partial / "done"):
        folder.mkdir(exist_ok=True)
        for cut_off in folder.glob(".*.tmp"):
            cut_off.unlink()
    return partial


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
    if not partial.is_dir() or any(path.suffix != ".tmp" for path in partial.iterdir()):
        raise FormatError(f"{partial} is there and not from a conversion: move it away.")
    return None
