"""Worker processes, which a backend may hang, end or flood without harm to the rest of a certification.

A backend runs in the process that examines it. Before it gets a problem the worker tells the parent (`in_flight`), which so
knows what was being computed when a worker takes too long or is gone. That worker is ended, with its process group, and the next
task gets another. A worker goes when its parent does, however that ended.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from refpeft.errors import CapabilityError

GRACE = 3.0
"""Seconds that a worker has to put its things in order before it is killed."""


@dataclass(frozen=True)
class Task:
    """A call to make in a worker.

    Attributes
    ----------
    name : object
        What the result is told by.
    function : callable
        Importable in the worker.
    arguments : tuple
    seconds : float
        How long a problem may take, and how long the task until its first; 0 for no limit.
    """

    name: Any
    function: Callable
    arguments: tuple = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Lost:
    """What is known of a task that gave no result.

    Attributes
    ----------
    why : str
        What was done instead of returning, as the end of a sentence.
    examples : int
        How many problems had been begun.
    problem : Problem or None
        The last of them.
    """

    why: str
    examples: int
    problem: Any


class Workers:
    """Up to ``count`` processes, started when there is work for them and kept until the end of the block."""

    def __init__(self, count: int = 1):
        self.count = count
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *failure) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, whatever they do."""
        _end(self._workers)
        self._workers = []

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Any, Any]]:
        """(name, result) of each task as it ends; the result is a `Lost` where there is none.

        Raises
        ------
        CapabilityError
            If no worker can be started.
        Exception
            What a task raised.
        """
        waiting = deque(tasks)
        try:
            while waiting or any(w.task for w in self._workers):
                self._give(waiting)
                busy = [w for w in self._workers if w.task]
                _wait_for(busy)
                for worker in busy:
                    name = worker.task.name
                    for result in worker.news():
                        yield name, result
                self._bury()
        finally:
            _end([w for w in self._workers if w.task])
            self._bury()

    def one(self, function: Callable, *arguments, seconds: float = 0.0) -> Any:
        """The result of a single call."""
        ((_, result),) = self.run([Task(None, function, arguments, seconds)])
        return result

    def _give(self, waiting: deque[Task]) -> None:
        """Hand tasks to idle workers, and start more of them while there are tasks left."""
        _end(w for w in self._workers if not w.task and not w.process.is_alive())
        self._bury()
        for worker in self._workers:
            if waiting and not worker.task:
                worker.begin(waiting.popleft())
        while waiting and len(self._workers) < self.count:
            self._workers.append(_Worker())
            self._workers[-1].begin(waiting.popleft())

    def _bury(self) -> None:
        self._workers = [w for w in self._workers if not w.ended]


def _wait_for(workers: list[_Worker]) -> None:
    """Sleep until one of them says something, ends, or has had its time."""
    remaining = min(w.deadline for w in workers) - time.monotonic()
    wait(
        [w.pipe for w in workers] + [w.process.sentinel for w in workers],
        None if remaining == float("inf") else max(0.0, remaining),
    )


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,))
        self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.deadline, self.ended, self._ready = float("inf"), False, False

    def begin(self, task: Task) -> None:
        self.task, self._examples, self._problem = task, 0, b""
        with suppress(OSError):
            self.pipe.send((task.function, task.arguments))

    def news(self) -> Iterator[Any]:
        """The result of the task, if it has one now."""
        try:
            kind, content = self.pipe.recv() if self.pipe.poll() else ("", None)
        except Exception as error:
            ending = isinstance(error, EOFError | OSError)
            return (yield self._lose(self._ending() if ending else f"sent what cannot be read ({said(error)})"))
        self._ready = self._ready or bool(kind)
        if kind in ("started", "problem"):
            self.deadline = time.monotonic() + (self.task.seconds or float("inf"))
        if kind == "problem":
            self._examples, self._problem = self._examples + 1, content
        elif kind == "result":
            self._rest()
            yield content
        elif kind == "raised":
            self._rest()
            raise content
        elif kind == "lost":
            yield self._lose(content)
        elif not kind and time.monotonic() > self.deadline:
            yield self._lose(f"did not return within {self.task.seconds:g} seconds")
        elif not kind and not self.process.is_alive() and not self.pipe.poll():
            yield self._lose(self._ending())

    def _rest(self) -> None:
        self.task, self.deadline = None, float("inf")

    def _lose(self, why: str) -> Lost:
        """End the process; what is known of its task."""
        problem = None
        with suppress(Exception):
            problem = pickle.loads(self._problem)
        lost = Lost(why, self._examples, problem)
        _end([self])
        return lost

    def _ending(self) -> str:
        """How the process ended.

        Raises
        ------
        CapabilityError
            If it had not begun to work.
        """
        self.process.join(GRACE)
        status = self.process.exitcode
        if status is None:
            return "closed the pipe of the process that ran the check"
        how = f"status {status}" if status >= 0 else f"signal {_signal(-status)}"
        if not self._ready:
            _end([self])
            raise CapabilityError(
                f"a worker process could not be started and ended with {how}: a script that certifies must do so "
                "under 'if __name__ == \"__main__\":', and the machine must have memory for one more."
            )
        return f"ended the process that ran the check, with {how}"


def _end(workers: Iterable[_Worker]) -> None:
    """End workers: each is asked, given time to end what it has started, and killed with its process group."""
    workers = [w for w in workers if not w.ended]
    for worker in workers:
        with suppress(OSError):
            worker.process.terminate()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        wait([worker.process.sentinel], max(0.0, deadline - time.monotonic()))
        if os.name == "posix":
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.kill()
        worker.process.join()
        worker.process.close()
        worker.pipe.close()
        worker.ended, worker.task = True, None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def said(error: BaseException) -> str:
    """An exception in one line."""
    try:
        message = " ".join(str(error).split())[:400]
    except Exception:
        message = ""
    return type(error).__name__ + (f": {message}" if message else "")


# What runs in a worker.

_parent: tuple[Connection, int] | None = None


class Stopped(BaseException):
    """The parent ends this worker."""


def in_flight(problem) -> None:
    """Tell the parent which problem the backend gets next, and start its time; nothing outside of a worker."""
    if _parent is not None:
        _tell("problem", pickle.dumps(problem, pickle.HIGHEST_PROTOCOL))


def _work(pipe: Connection) -> None:
    """Do tasks until told to end."""
    global _parent
    _parent = pipe, os.getpid()
    with suppress(Stopped, EOFError):
        _settle()
        _tell("ready")
        while True:
            function, arguments = pipe.recv()
            _tell("started")
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
        outcome = "result", function(*arguments)
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
