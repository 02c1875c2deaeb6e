"""What runs in a worker process: tasks, one after the other, told to the parent as they go.

A backend runs in the process that examines it. Before it gets a problem the worker tells the parent which (`in_flight`), and
while it is called a clock runs that the parent can see (`timed`). A worker goes when its parent does, however that ended.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

GRACE = 3.0
"""Seconds that a worker has to put its things in order before it is killed."""

THREADS = 100
"""How many threads a backend may have left behind before its worker is replaced after a task."""

_parent: tuple[Connection, int] | None = None
_clock: Any = None


class Stopped(BaseException):
    """The parent ends this worker."""


def in_flight(problem) -> None:
    """Tell the parent which problem the backend gets next; nothing outside of a worker."""
    if _parent is not None:
        _tell("problem", pickle.dumps(problem, pickle.HIGHEST_PROTOCOL))


@contextmanager
def timed() -> Iterator[None]:
    """Within the block the time runs that a task's calls are limited to; nothing outside of a worker."""
    _set_clock(time.monotonic())
    try:
        yield
    finally:
        _set_clock(0.0)


def _set_clock(since: float) -> None:
    if _parent is not None and os.getpid() == _parent[1]:
        _clock.value = since


def work(pipe: Connection, clock: Any) -> None:
    """Do tasks until told to end."""
    global _parent, _clock
    _parent, _clock = (pipe, os.getpid()), clock
    with suppress(Stopped, EOFError):
        _settle()
        _tell("ready")
        folder = os.getcwd()
        while True:
            function, arguments = pipe.recv()
            os.chdir(folder)
            _do(function, arguments)


def _settle() -> None:
    """Be a process group of its own, deaf to the terminal's interrupt, without a standard output, and end with the parent."""
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, _stop)
    if os.name == "posix":
        os.setpgid(0, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _stop(*_) -> None:
    raise Stopped


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    if os.name == "posix":
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _do(function: Callable, arguments: tuple) -> None:
    """Do a task, and tell what came of it."""
    try:
        result = function(*arguments)
        outcome = "result" if threading.active_count() <= THREADS else "last result", result
    except Stopped:
        raise
    except Exception as error:
        outcome = "raised", error
    except BaseException as error:
        outcome = "lost", f"raised {said(error)}"
    try:
        _tell(*outcome)
    except (OSError, Stopped):
        raise
    except Exception as error:
        _tell("lost", f"gave what cannot be sent to another process ({said(error)})")


def _tell(kind: str, content=None) -> None:
    """Send to the parent, all or nothing; a process that a backend has forked off this one ends here instead."""
    pipe, owner = _parent
    if os.getpid() != owner:
        os._exit(1)
    pipe.send_bytes(pickle.dumps((kind, content), pickle.HIGHEST_PROTOCOL))


def said(error: BaseException) -> str:
    """An exception in one line."""
    try:
        message = " ".join(str(error).split())[:400]
    except Exception:
        message = ""
    return type(error).__name__ + (f": {message}" if message else "")
