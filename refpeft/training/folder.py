"""The folder of a run or a sweep: a record says what it is, so that the same command goes on and another is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refpeft.errors import FormatError
from refpeft.files import atomic_write, read_json


def enter(folder: Path, record: str, kind: str, what: dict[str, Any]) -> None:
    """Make the folder, or find the same in it; a kill may have left a temporary file behind.

    Parameters
    ----------
    folder : Path
    record : str
        The file's name.
    kind : str
        ``run`` or ``sweep``, for messages.
    what : dict
        All that makes it what it is, as JSON can say it.

    Raises
    ------
    FormatError
        If the folder holds another, or something else.
    """
    text, there = json.dumps(what, indent=2, sort_keys=True), folder / record
    if there.exists():
        before, asked = read_json(there), json.loads(text)
        for name in sorted(before | asked):
            if before.get(name) != asked.get(name):
                raise FormatError(
                    f"{folder} holds another {kind}: {name} is {before.get(name)!r} there, but {asked.get(name)!r} is "
                    "asked for."
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise FormatError(f"{folder} holds something that is not a {kind}; name a new folder.")
    atomic_write(there, text.encode())
