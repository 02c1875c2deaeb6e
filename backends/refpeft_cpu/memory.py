"""Memory for large results: what nobody holds any more is kept for the next result of its size.

The system clears fresh memory page by page when it is first written to, and takes it back when the array is gone: of decoding a
matrix that was a third of the time.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections import defaultdict

import numpy as np

LARGE = 2**22
"""Bytes of a result whose memory is kept."""
KEPT = 2**28
"""Bytes that lie here unused at most."""

FREED = 2**30
"""Bytes that the C library may keep."""
HEAP = 2**26
"""Bytes of one heap of a thread: where so many are wanted in reserve, none is given back whole."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""As ``malloc.h`` numbers them."""

_unused: defaultdict[int, list[np.ndarray]] = defaultdict(list)
"""By size. Lists are taken from and added to in one step each, whichever threads do it."""


def empty(shape, dtype, like=None):
    """As ``np.empty``; the memory of a large array comes back here when the array and all views of it are gone.

    Where ``like`` is no array of NumPy's itself, as in a rehearsal, it lends memory of its own kind.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return np.empty(shape, dtype) if like is None else np.empty_like(like, dtype, shape=shape)
    if not isinstance(like, np.ndarray | None):
        return like.lent(shape, dtype, KEPT)
    try:
        memory = _unused[size].pop()
    except IndexError:
        memory = np.empty(size, np.uint8)
    return np.asarray(_Loan(memory)).view(dtype).reshape(shape)


@functools.cache
def keep_freed() -> None:
    """Have the C library keep what this process frees, up to `FREED` bytes, where it is glibc.

    A step of training allocates what the step before it freed. Given back and taken again, that memory is cleared page by page
    each time, a fifth of the step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, size in ((_TRIM_THRESHOLD, FREED), (_TOP_PAD, HEAP), (_MMAP_THRESHOLD, FREED)):
            mallopt(parameter, size)


class _Loan:
    """What an array holds while it, or a view of it, is there."""

    def __init__(self, memory: np.ndarray):
        self.memory, self.__array_interface__ = memory, memory.__array_interface__

    def __del__(self):
        _give_back(self.memory)


def _give_back(memory: np.ndarray) -> None:
    """Keep it, and let go of all else where that would be too much."""
    if memory.size > KEPT:
        return
    if sum(size * len(kept) for size, kept in list(_unused.items())) + memory.size > KEPT:
        _unused.clear()
    _unused[memory.size].append(memory)
