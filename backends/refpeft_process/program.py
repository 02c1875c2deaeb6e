"""A program at the other end of three pipes: one request, one answer, one deadline.

Everything happens in the caller's thread, on non-blocking pipes: while the answer is read, the request goes out as
fast as the program takes it, and standard error is emptied, so that neither side ever waits for the other in a circle.
Whatever a program does instead of answering becomes one sentence, and the end of it and of its process group.
"""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import subprocess
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress

from refpeft.errors import CapabilityError, FormatError
from refpeft.formats.safetensors import Archive, read_message

STDERR_LIMIT = 1 << 20
"""Bytes of standard error that a program may write during one request."""


class Overdue(CapabilityError, TimeoutError):
    """A program did not answer in time."""


_CHUNK = 1 << 16
_TAIL = 1 << 12
_GRACE = 1.0


class Program:
    """A running program.

    Parameters
    ----------
    arguments : sequence of str
        The program and its arguments.

    Raises
    ------
    CapabilityError
        If it cannot be started, or this is not a POSIX system.
    """

    def __init__(self, arguments: Sequence[str]):
        self._name = f"program {one_line(shlex.join(arguments))!r}"
        if os.name != "posix":
            raise CapabilityError(f"{self._name} cannot be asked here: pipes with a deadline need a POSIX system.")
        try:
            self._process = subprocess.Popen(
                arguments,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise CapabilityError(f"{self._name} {_missing(arguments[0])}.") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise CapabilityError(f"{self._name} could not be started: {reason}.") from None
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            os.set_blocking(pipe.fileno(), False)
        self._owner = os.getpid()
        self.close = weakref.finalize(self, _end, self._process, self._owner)

    @property
    def usable(self) -> bool:
        """Whether it was started by this very process (not before a fork) and has not been closed."""
        return self.close.alive and self._owner == os.getpid()

    def ask(self, what: str, request: bytes, limit: int, timeout: float) -> Archive:
        """Send a request and read its answer.

        Parameters
        ----------
        what : str
            The request in words, for messages.
        request : bytes
        limit : int
            The longest answer accepted, in bytes.
        timeout : float
            Seconds until the whole answer must be there; 0 for no limit.

        Returns
        -------
        Archive

        Raises
        ------
        CapabilityError
            If the program ended, was too slow (`Overdue`), or wrote more than `STDERR_LIMIT` to standard error.
        FormatError
            If what it wrote is not one safetensors message within the limit.

        After either, the program has been killed.
        """
        try:
            return self._exchange(what, request, limit, timeout)
        except BaseException:
            _end(self._process, self._owner, grace=0.0)
            self.close.detach()
            raise

    def _exchange(self, what: str, request: bytes, limit: int, timeout: float) -> Archive:
        with selectors.PollSelector() as selector:
            exchange = _Exchange(self._process, selector, request, time.monotonic() + timeout if timeout else None)
            try:
                exchange.require_silence()
                archive = read_message(exchange, limit)
                exchange.finish()
            except TimeoutError:
                began = f" (it began with {exchange.start!r})" if exchange.start else ""
                raise Overdue(
                    f"{self._name} did not answer {what} within {timeout:g} seconds{began}{exchange.last_words}."
                ) from None
            except _Flood:
                raise CapabilityError(
                    f"{self._name} wrote more than {STDERR_LIMIT} bytes to standard error during {what}"
                    f"{exchange.last_words}."
                ) from None
            except _Noise:
                raise FormatError(
                    f"{self._name} wrote to standard output before it was asked for {what}; "
                    "standard output carries one answer for each request and nothing else."
                ) from None
            except FormatError as error:
                ending = f"it {exchange.ending()}" if exchange.ended else f"it began with {exchange.start!r}"
                raise FormatError(f"{self._name} did not answer {what} with a message ({ending}): {error}") from None
            if archive is None:
                raise CapabilityError(f"{self._name} did not answer {what}: it {exchange.ending()}.")
            return archive


class _Flood(Exception):
    """Too much came on standard error."""


class _Noise(Exception):
    """Something came on standard output before anything was asked."""


class _Exchange:
    """The three pipes during one request; to `read_message` it is the stream that the answer comes from."""

    def __init__(self, process: subprocess.Popen, selector: selectors.BaseSelector, request: bytes, deadline):
        self._process, self._selector, self._deadline = process, selector, deadline
        self._pending = memoryview(request)
        self._tail, self._spoken = b"", 0
        self.start, self.ended = b"", False
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stderr, selectors.EVENT_READ)

    def require_silence(self) -> None:
        """Nothing may lie in the pipe yet."""
        with suppress(BlockingIOError):
            if os.read(self._process.stdout.fileno(), 1):
                raise _Noise

    def read(self, size: int) -> bytes:
        """At least one and at most ``size`` bytes of the answer, none at its end."""
        while size and not self.ended:
            if self._process.stdout in self._turn():
                data = os.read(self._process.stdout.fileno(), size)
                self.start = (self.start + data)[:16] if len(self.start) < 16 else self.start
                self.ended = not data
                return data
        return b""

    def finish(self) -> None:
        """Hand over what is left of the request, so that the next one starts in step."""
        self._selector.unregister(self._process.stdout)
        while self._pending:
            self._turn()

    def _turn(self) -> set:
        """Wait for pipes, pass on what goes, and say which are ready."""
        remaining = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        ready = {key.fileobj for key, _ in self._selector.select(remaining)}
        if not ready:
            raise TimeoutError
        if self._process.stderr in ready:
            self._listen()
        if self._process.stdin in ready:
            self._send()
        return ready

    def _send(self) -> None:
        try:
            self._pending = self._pending[os.write(self._process.stdin.fileno(), self._pending[:_CHUNK]) :]
        except BrokenPipeError:
            self._pending = self._pending[:0]
        if not self._pending:
            self._selector.unregister(self._process.stdin)

    def _listen(self) -> None:
        """Take what is on standard error."""
        data = os.read(self._process.stderr.fileno(), _CHUNK)
        if not data:
            self._selector.unregister(self._process.stderr)
        self._tail = (self._tail + data)[-_TAIL:]
        self._spoken += len(data)
        if self._spoken > STDERR_LIMIT:
            raise _Flood

    def _drain(self) -> None:
        """Take what a program that has ended left on standard error."""
        with suppress(BlockingIOError, _Flood):
            while self._process.stderr in self._selector.get_map():
                self._listen()

    def ending(self) -> str:
        """How a program that says no more has ended, and its last words."""
        try:
            status = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return f"closed its standard output{self.last_words}"
        self._drain()
        how = f"ended with status {status}" if status >= 0 else f"was ended by signal {_signal(-status)}"
        return how + self.last_words

    @property
    def last_words(self) -> str:
        """The last line of standard error, ready to be put at the end of a sentence."""
        lines = self._tail.decode(errors="replace").split("\n")
        said = [line for line in map(one_line, lines) if line]
        return f"; its last words were {said[-1]!r}" if said else ""


def one_line(said: str) -> str:
    """What a program said, as one printable line of at most 200 characters."""
    line = " ".join("".join(character if character.isprintable() else " " for character in said).split())
    return line if len(line) <= 200 else line[:200] + "…"


def _missing(program: str) -> str:
    """Why a program was not found, as the end of a sentence."""
    if not os.path.exists(program):
        return "was not found"
    if os.sep in program:
        return "exists, but the interpreter that its first line names does not"
    return f"was not found; the one in the current folder is called ./{program}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _end(process: subprocess.Popen, owner: int, grace: float = _GRACE) -> None:
    """Let a program go: close its input, allow it ``grace`` seconds, kill what is left of its process group, reap it.

    In a process that was forked from the owner only the pipes are closed: the program is not its own.
    """
    with suppress(OSError):
        process.stdin.close()
    if os.getpid() == owner:
        if grace:
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    else:
        process.returncode = 0
    process.stdout.close()
    process.stderr.close()
