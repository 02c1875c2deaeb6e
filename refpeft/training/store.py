"""Where pages live: in host memory, or in a file that a killed run goes on from.

The file has two places for each page. The *record*, a small file beside it, says how many steps are complete and which place of
each page belongs to them. What is written between two commits goes to the other place, so that nothing that the record speaks of
is ever touched. A commit syncs the pages to the disk and then replaces the record: a new one is written under a temporary name,
synced and renamed, and the folder is synced before the next page is written, lest the disk know the old record and a page of the
next. So at every instant, in the middle of a commit too, the record on the disk is whole, and so are the pages that it speaks of.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import weakref
from pathlib import Path

import numpy as np

from refpeft.errors import FormatError
from refpeft.files import atomic_write, locked, named, sweep_up

FORMAT = "refpeft-pages/1"


class MemoryStore:
    """Pages in host memory, which end with the process.

    Attributes
    ----------
    steps : int or None
        How many steps the store resumes from; None for a new run.
    """

    steps = None

    def __init__(self, pages: np.ndarray):
        self.pages = pages

    def current(self, page: int) -> np.ndarray:
        """The bytes of a page as they were last written."""
        return self.pages[page]

    def next(self, page: int) -> np.ndarray:
        """Where the page is to be written."""
        return self.pages[page]

    def commit(self, steps: int) -> None:
        """Nothing outlives the process."""

    def close(self) -> None:
        """Nothing is open."""


class FileStore:
    """Pages in ``folder/pages.bin``, mapped into memory, with the record in ``folder/record.json``.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    count, size : int
        How many pages, of how many bytes.
    layout : dict
        What the pages hold, as JSON can say it: a record with another layout is refused.

    Raises
    ------
    FormatError
        If the folder holds the pages of something else, is damaged, or is another process's at the moment.
    """

    def __init__(self, folder: str | os.PathLike[str], count: int, size: int, layout: dict):
        self.folder, self.layout = Path(folder), layout
        self.folder.mkdir(parents=True, exist_ok=True)
        busy = f"{self.folder}: another optimizer has these pages open; close it first."
        self.close = weakref.finalize(self, os.close, locked(self.folder, busy))
        sweep_up(self.folder)
        self.steps, self._place = self._recorded(count, 2 * count * size)
        pages = self.folder / "pages.bin"
        if self.steps is None:
            try:
                with open(pages, "wb") as file:
                    _reserve(file.fileno(), 2 * count * size)
            except OSError as error:
                named(error, pages)
                raise
        self._mapped = np.memmap(pages, np.uint8, "r+", shape=(count, 2, size))
        self._written: set[int] = set()

    def current(self, page: int) -> np.ndarray:
        """The bytes of a page as they were last written."""
        return self._at(page, page in self._written)

    def next(self, page: int) -> np.ndarray:
        """Where the page is to be written: beside what the record speaks of."""
        if not self.close.alive:
            raise FormatError(f"{self.folder}: the pages are closed, so nothing is written to them.")
        self._written.add(page)
        return self._at(page, True)

    def commit(self, steps: int) -> None:
        """Make what was written the state after ``steps`` steps, from which a killed run goes on."""
        self._mapped.flush()
        place = self._place.copy()
        place[list(self._written)] ^= True
        text = json.dumps(
            {"format": FORMAT, "steps": steps, "place": np.packbits(place).tobytes().hex(), **self.layout}
        )
        atomic_write(self.folder / "record.json", text.encode())
        _sync_folder(self.folder)
        self.steps, self._place = steps, place
        self._written.clear()

    def _at(self, page: int, other: bool) -> np.ndarray:
        return np.asarray(self._mapped[page, int(self._place[page] ^ other)])

    def _recorded(self, count: int, size: int) -> tuple[int | None, np.ndarray]:
        """Steps and places of the record, if there is one of this layout."""
        try:
            record = json.loads((self.folder / "record.json").read_text())
            steps, place = record["steps"], np.frombuffer(bytes.fromhex(record["place"]), np.uint8)
        except FileNotFoundError:
            return None, np.zeros(count, bool)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{self.folder}: record.json is not a record of pages: {error!r}.") from error
        for name, wanted in ({"format": FORMAT} | self.layout).items():
            if record.get(name) != wanted:
                raise FormatError(
                    f"{self.folder}: the pages belong to another run: {name} is {record.get(name)!r}, but {wanted!r} is needed."
                )
        found = (self.folder / "pages.bin").stat().st_size if (self.folder / "pages.bin").exists() else 0
        if type(steps) is not int or steps < 0:
            raise FormatError(f"{self.folder}: steps in record.json must be 0 or more, but {steps!r} came.")
        if found != size or place.size != -(-count // 8):
            raise FormatError(f"{self.folder}: pages.bin has {found} bytes, but {size} belong to the record.")
        return steps, np.unpackbits(place, count=count).astype(bool)


def _reserve(file: int, size: int) -> None:
    """Give an empty file its size, and its place on the disk: a disk that is full later would end the process, which writes to
    memory that the file is mapped to.
    """
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:
        if getattr(error, "errno", None) not in (None, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.truncate(file, size)  # where the system cannot


def _sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk, where the system can."""
    with contextlib.suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
