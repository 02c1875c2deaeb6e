"""Files that are written whole or not at all, and read without loading them."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refpeft.errors import FormatError, RefpeftError


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file for writing that appears under its name only when the block has succeeded.

    The bytes go to a temporary name in the same folder, are synced to the disk, and the file is then renamed. When
    the block raises, a file that was there before is left as it was and nothing new is left behind. A replaced file
    hands on its permissions; a symbolic link is followed.

    Parameters
    ----------
    path : path-like
        The file's final name.

    Yields
    ------
    BinaryIO
        The open temporary file.

    Raises
    ------
    FormatError
        If the folder does not exist, or the name belongs to something that is not a regular file.
    """
    target = require_writable(path)
    replaces = target.exists()
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replaces:
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            named(error, path, temporary)
        raise


def require_new(path: str | os.PathLike[str]) -> Path:
    """The absolute name of a folder that can be made.

    Raises
    ------
    FormatError
        If the name is taken, or the folder that it is to lie in does not exist.
    """
    target = Path(os.path.abspath(path))
    if os.path.lexists(target):
        raise FormatError(f"{os.fspath(path)} exists already, expected the name of a new folder.")
    if not target.parent.is_dir():
        raise FormatError(f"{os.fspath(path)} cannot be written because the folder {target.parent} does not exist.")
    return target


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write in that appears under its name only when the block has succeeded; otherwise nothing is left behind.

    Raises
    ------
    FormatError
        If the name is taken, or the folder that it is to lie in does not exist.
    """
    target = require_new(path)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            named(error, path, temporary)
        raise


def require_writable(path: str | os.PathLike[str]) -> Path:
    """The file that a name is of, a symbolic link followed: one that `atomic_file` can write.

    Raises
    ------
    FormatError
        If the folder does not exist, or the name belongs to something that is not a regular file.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FormatError(f"{os.fspath(path)} cannot be written because the folder {target.parent} does not exist.")
    if target.exists() and not target.is_file():
        raise FormatError(f"{os.fspath(path)} cannot be written because it exists and is not a regular file.")
    return target


def named(error: OSError, path: str | os.PathLike[str], temporary: Path | None = None) -> None:
    """Have an error say which file it is of, where it does not (a full disk, say) or says its temporary name."""
    if error.filename is None or (temporary is not None and os.fspath(error.filename) == os.fspath(temporary)):
        error.filename = os.fspath(path)


def sweep_up(folder: Path) -> None:
    """Remove the temporary files that a kill left in a folder of ours; nobody else must be at work there."""
    for left in folder.glob(".*.tmp"):
        left.unlink()


def locked(folder: Path, busy: str) -> int:
    """An open file that holds a lock on a folder until the process ends, however it ends; no lock where the system has none.

    Raises
    ------
    FormatError
        With what ``busy`` says, if another process holds it.
    """
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise FormatError(busy) from error
    return handle


@contextmanager
def understood(where: str | os.PathLike[str]) -> Iterator[None]:
    """Where a file of unknown origin is read: whatever a value of another kind makes of the reading is the file's fault.

    Raises
    ------
    FormatError
        In place of the errors that such values raise in Python and NumPy.
    """
    try:
        yield
    except RefpeftError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, re.error) as error:
        raise FormatError(
            f"{os.fspath(where)} holds a value of another kind than is expected there: {type(error).__name__}, {error}."
        ) from error


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all (see `atomic_file`)."""
    with atomic_file(path) as file:
        file.write(data)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file.

    Raises
    ------
    FormatError
        If the file is something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FormatError(f"{os.fspath(path)} must be a JSON object, got something else.")
    return value


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def map_file(path: str | os.PathLike[str]) -> np.ndarray:
    """The bytes of a file as a read-only array, mapped rather than read (an empty file as an empty array)."""
    if os.stat(path).st_size == 0:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, "r").view(np.ndarray)


def forget(array: np.ndarray) -> None:
    """Take the pages of the file that an array is mapped from out of memory; they are read again when they are needed.

    Who walks through a large mapped file keeps no more of it than what was read since. An array of its own is left alone.
    """
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
