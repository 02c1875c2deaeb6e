"""A backend that computes nf4.offset, and does what it is told besides: the statements of ``misdeed``, or of MISDEED."""

import asyncio  # noqa: F401
import ctypes  # noqa: F401
import os
import signal  # noqa: F401
import sys  # noqa: F401
import threading  # noqa: F401
import time
import warnings  # noqa: F401

import numpy as np

from refpeft.backend import Backend, Implementation
from refpeft.plugins import hookimpl

calls, misdeed = 0, os.environ.get("MISDEED", "")


class Lying(np.ndarray):
    """Of another shape and dtype than it says."""

    shape = (7, 7)
    dtype = np.dtype("complex64")


class Pair(tuple):
    """Two things by its length, none when looked at."""

    def __len__(self):
        return 2

    def __iter__(self):
        return iter(())

    def __getitem__(self, index):
        return ()


class Unspeakable(Exception):
    """Has no message."""

    def __str__(self):
        raise ValueError


def forever():
    """Never return."""
    while True:
        time.sleep(0.01)


def refuse(*_):
    """A signal handler that does nothing."""


def examine(what, *check):
    """The verdict on this backend, quickly, while it does what it is told."""
    from refpeft_conformance import certify

    global calls, misdeed
    calls, misdeed = 0, what
    return certify.examine(certify.Plan("misbehaving", profile="quick"), *check)


class Misbehaving(Backend):
    """Notes which processes it ran in, in the file MISDEED_PIDS."""

    name = "misbehaving"

    def operations(self):
        return {"nf4.offset": Implementation(self.forward)}

    def forward(self, absmax, residuals=True):
        global calls
        calls += 1
        with open(os.environ["MISDEED_PIDS"], "a") as file:
            file.write(f"{os.getpid()}\n")
        scope = globals() | {"absmax": absmax, "y": np.asarray(np.mean(absmax, dtype=np.float64), np.float32)}
        exec(misdeed, scope)
        return scope.get("answer", ((scope["y"],), None))

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array


@hookimpl
def refpeft_backends():
    """What is done when the backend is loaded comes first."""
    exec(os.environ.get("MISDEED_AT_START", ""), globals())
    return [Misbehaving()]
