"""Worker processes, which a backend may hang, end or flood without harm to the rest of a certification.

The parent's side. It knows which problem each worker's backend has in hand and since when it has been running
(`refpeft_conformance.worker`). A worker whose backend takes too long is ended, with its process group, and the next task gets
another, as after one that is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from refpeft.errors import CapabilityError
from refpeft_conformance.worker import GRACE, said, work


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
        How long one `timed` call within it may take; 0 for no limit.
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
    """Sleep until one of them says something, ends, or may have had its time."""
    pause = min((w.left() for w in workers if w.task.seconds), default=None)
    wait([w.pipe for w in workers] + [w.process.sentinel for w in workers], pause)


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.clock = context.RawValue("d", 0.0)
        self.process = context.Process(target=work, args=(theirs, self.clock))
        self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.ended, self._ready = False, False

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
        if kind == "problem":
            self._examples, self._problem = self._examples + 1, content
        elif kind == "result":
            self.task = None
            yield content
        elif kind == "last result":
            _end([self])
            yield content
        elif kind == "raised":
            self.task = None
            raise content
        elif kind == "lost":
            yield self._lose(content)
        elif not kind and self.task.seconds and not self.left():
            yield self._lose(f"did not return within {self.task.seconds:g} seconds")
        elif not kind and not self.process.is_alive() and not self.pipe.poll():
            yield self._lose(self._ending())

    def left(self) -> float:
        """How many seconds of its task's limit are left: all of them, while the backend is not called."""
        since, now = self.clock.value, time.monotonic()
        return max(0.0, (since or now) + self.task.seconds - now)

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
    try:
        for worker in workers:
            wait([worker.process.sentinel], max(0.0, deadline - time.monotonic()))
    finally:
        _kill(workers)


def _kill(workers: Iterable[_Worker]) -> None:
    for worker in workers:
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
