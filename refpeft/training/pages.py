"""Paging: many pages in a store, few of them in the device's memory, and a table of which.

A page that is wanted and not there takes a free frame, or that of the page that was used longest ago, which is written back first
if it was changed. The table only decides; `Frames` moves the bytes, at once on a CPU, on a stream of its own on a GPU.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

import numpy as np

from refpeft.errors import AttributeValueError


class Frames(Protocol):
    """Device memory for ``count`` pages of ``size`` bytes. Copies happen in the order in which they are asked for."""

    def host(self, count: int) -> np.ndarray:
        """Host memory for ``count`` pages that copies are fast from and to, all zero: (count, size) bytes."""

    def fetch(self, frame: int, page: np.ndarray) -> None:
        """Begin to copy a page into a frame, after what was computed on the frame so far."""

    def spill(self, frame: int, page: np.ndarray) -> None:
        """Begin to copy a frame into a page, after what was computed on the frame so far."""

    def ready(self, frame: int) -> None:
        """What is computed from here on finds the frame's fetch done."""

    def settle(self) -> None:
        """Wait for all copies."""

    def view(self, frame: int, start: int, stop: int, dtype: str) -> Any:
        """Bytes ``start`` to ``stop`` of a frame as an array of ``dtype``, without a copy."""


class HostFrames:
    """Frames in the host's own memory: for backends on a CPU, where the budget stands for one of a device."""

    def __init__(self, count: int, size: int):
        self.memory = np.zeros((count, size), np.uint8)

    def host(self, count):
        return np.zeros((count, self.memory.shape[1]), np.uint8)

    def fetch(self, frame, page):
        self.memory[frame] = page

    def spill(self, frame, page):
        page[:] = self.memory[frame]

    def ready(self, frame):
        pass

    def settle(self):
        pass

    def view(self, frame, start, stop, dtype):
        return self.memory[frame, start:stop].view(dtype)


def frame_count(budget: int, page_size: int) -> int:
    """How many pages a budget in bytes holds.

    Raises
    ------
    AttributeValueError
        If it holds none, or pages cannot hold whole numbers one after the other.
    """
    if page_size % 8:
        raise AttributeValueError(f"paging: the page size must be a multiple of 8 bytes, but {page_size} came.")
    if page_size < 1 or budget < page_size:
        raise AttributeValueError(
            f"paging: the budget must hold at least one page, but it is {budget} bytes and a page {page_size}."
        )
    return budget // page_size


class PageTable:
    """Which pages are in which frames.

    Parameters
    ----------
    store : MemoryStore or FileStore
        Where all pages are.
    frames : Frames
    count : int
        How many frames there are.

    Attributes
    ----------
    resident : OrderedDict of int to int
        Page to frame, the page that was used longest ago first.
    fetched, spilled : int
        How many pages were copied to the device, and back.
    """

    def __init__(self, store, frames: Frames, count: int):
        self.store, self.frames, self.count = store, frames, count
        self.resident: OrderedDict[int, int] = OrderedDict()
        self.fetched = self.spilled = 0
        self._changed: set[int] = set()

    def use(self, page: int) -> int:
        """The frame of ``page``, to be changed: the caller's until the next ``use``, with one ``prefetch`` before it."""
        frame = self._bring(page)
        self.frames.ready(frame)
        self._changed.add(page)
        return frame

    def prefetch(self, page: int) -> None:
        """Begin to fetch ``page`` while the one in use is computed on; with a single frame, nothing."""
        if self.count > 1:
            self._bring(page)

    def flush(self) -> None:
        """Write all changed pages to the store; they stay resident."""
        for page in sorted(self._changed):
            self._write(page)
        self.frames.settle()

    def _bring(self, page: int) -> int:
        if page not in self.resident:
            frame = len(self.resident) if len(self.resident) < self.count else self._evict()
            self.frames.fetch(frame, self.store.current(page))
            self.resident[page] = frame
            self.fetched += 1
        self.resident.move_to_end(page)
        return self.resident[page]

    def _evict(self) -> int:
        oldest = next(iter(self.resident))
        if oldest in self._changed:
            self._write(oldest)
        return self.resident.pop(oldest)

    def _write(self, page: int) -> None:
        self.frames.spill(self.resident[page], self.store.next(page))
        self._changed.discard(page)
        self.spilled += 1
