"""Memory with a guard page at either end, so that a kernel's step outside of an array is a fault and no silent read."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
NONE, READ, WRITE = 0, 1, 2


class Buffer:
    """Bytes between two guard pages, ending at the second one, or beginning after the first.

    Parameters
    ----------
    size : int
        In bytes. What is left of their pages is filled with ones, which is NaN, and must stay so.
    at_head : bool
        Whether they begin after the first guard page.

    Attributes
    ----------
    bytes : ndarray of uint8
    address : int
    """

    def __init__(self, size: int, at_head: bool):
        page = mmap.PAGESIZE
        inner = -(-size // page) * page
        self._memory = mmap.mmap(-1, inner + 2 * page)
        everything = np.frombuffer(self._memory, np.uint8)
        self._start = everything.ctypes.data
        everything[page : page + inner] = 0xFF
        begin = page if at_head else page + inner - size
        self.bytes, self.address = everything[begin : begin + size], self._start + begin
        self._rest = everything[page:begin], everything[begin + size : page + inner]
        self._inner = self._start + page, inner
        self._guards = (self._start, self._start + page + inner)
        for guard in self._guards:
            self._protect(guard, page, NONE)

    def freeze(self) -> None:
        """From now on it may only be read."""
        if self._inner[1]:
            self._protect(*self._inner, READ)

    def spoiled(self) -> int | None:
        """Where something was written beside the bytes, as `distance` counts; None if nothing was."""
        before, behind = (np.flatnonzero(rest != 0xFF) for rest in self._rest)
        if behind.size:
            return int(behind[0])
        return int(before[0]) - len(self._rest[0]) if before.size else None

    def distance(self, address: int) -> int | None:
        """How far an address lies behind the end (from 0 on) or before the beginning (below 0); None if it is far away."""
        page = mmap.PAGESIZE
        before, behind = self._guards
        if before <= address < before + page:
            return address - self.address
        if behind <= address < behind + page:
            return address - self.address - len(self.bytes)
        return None

    def holds(self, address: int) -> bool:
        """Whether the address is one of its bytes."""
        return self.address <= address < self.address + len(self.bytes)

    def _protect(self, address: int, size: int, how: int) -> None:
        if _libc.mprotect(address, size, how):
            raise OSError(ctypes.get_errno(), "mprotect failed")
