"""Sharing work out to threads: NumPy releases the interpreter's lock within a loop over many elements, and in every product.

Either the elements of one array are shared out, or whole tasks are, of which each then has a thread to itself.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_own = threading.local()
"""``task`` is there in a thread that has a task to itself."""


def count() -> int:
    """How many threads share the work: ``OMP_NUM_THREADS``, as BLAS has it, or all cores; one within a task."""
    if hasattr(_own, "task"):
        return 1
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


def together(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """What the tasks give, each computed on a thread of its own, on which BLAS has no others."""
    if len(tasks) == 1:
        return [tasks[0]()]

    def alone(task):
        _own.task = task
        try:
            return task()
        finally:
            del _own.task

    with _blas().limit(limits=1, user_api="blas"):
        return list(_pool(len(tasks)).map(alone, tasks))


@functools.cache
def _blas():
    """What sets BLAS's threads. Finding the libraries takes milliseconds, setting them microseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@functools.cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="refpeft")
