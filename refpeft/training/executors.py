"""Where runs go: processes of this machine, or the workers of a Dask cluster, as a ``concurrent.futures.Executor`` either way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess

from refpeft.errors import CapabilityError


@contextmanager
def processes(count: int) -> Iterator[Executor]:
    """Fresh processes, so many at a time, which end with this one, however it ends, and at once where it is interrupted.

    Raises
    ------
    CapabilityError
        If one of them is killed.
    """
    context = _Deaf()
    try:
        with ProcessPoolExecutor(count, context, _end_with_parent) as executor:
            try:
                yield executor
            except KeyboardInterrupt:
                context.end()
                raise
    except BrokenProcessPool as error:
        raise CapabilityError(
            "a process was killed, perhaps because memory ran out: what it was at is lost."
        ) from error


@contextmanager
def dask(address: str, timeout: str = "10s") -> Iterator[Executor]:
    """The workers of the Dask scheduler at an address; what a lost one was at, another does again.

    Workers need refpeft, and the files by the same names.

    Raises
    ------
    CapabilityError
        If ``distributed`` is not installed, nobody answers, or work is lost again and again.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise CapabilityError(
            "Dask needs distributed, which is not installed: run pip install 'refpeft[dask]'."
        ) from None
    try:
        client = Client(address, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        raise CapabilityError(f"there is no Dask scheduler at {address}: {error}.") from error
    with client, client.get_executor() as executor:
        try:
            yield executor
        except KeyboardInterrupt:
            executor.shutdown(wait=False)
            raise
        except (KilledWorker, CancelledError) as error:
            raise CapabilityError(f"the Dask cluster at {address} lost what it was at: {error}.") from error


class _Deaf(SpawnContext):
    """Processes that Ctrl-C does not reach, which a terminal sends to all: each would say where it was."""

    def __init__(self):
        super().__init__()
        self.started: list[BaseProcess] = []

    def Process(self, *given, **named):  # type: ignore[override]
        self.started.append(process := _DeafProcess(*given, **named))
        return process

    def end(self) -> None:
        """Terminate those that were begun."""
        for process in self.started:
            if process.pid is not None:
                process.terminate()


class _DeafProcess(SpawnProcess):
    def start(self):
        """Whole or not at all, and with the signal blocked, as a process inherits it."""
        with _interrupted_later():
            super().start()


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C that comes within is raised at the end, to whichever thread the system gave it; where it is ignored, it stays so."""
    heard = threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_sigmask")
    if not heard or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Have a thread wait for the parent's end: a pool's process whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait():
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
