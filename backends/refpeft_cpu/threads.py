"""Sharing work out to threads: NumPy releases the interpreter's lock within a loop over many elements."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def count() -> int:
    """How many threads share the work: ``OMP_NUM_THREADS``, as BLAS has it, or all cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(wanted)) if wanted.isdigit() else (os.cpu_count() or 1)


def share_out(work: Callable[[int, int], None], total: int, least: int) -> None:
    """Call ``work(first, last)`` on equal parts of ``range(total)``, one for each thread, none of fewer than ``least``."""
    parts = max(1, min(count(), total // least))
    ends = [total * k // parts for k in range(parts + 1)]
    if parts == 1:
        work(0, total)
    else:
        list(_pool(parts).map(work, ends[:-1], ends[1:]))


@functools.cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="refpeft")
