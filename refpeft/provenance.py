"""Provenance: while a backend runs under certification, the reference is poisoned.

A call through the catalogue, or of a source, then raises: a backend cannot pass by asking the oracle. A backend that runs the
reference's source on its own array type declares that (``source: shared``) and is let through with these arrays. This
catches shortcuts and accidents, not intent: code in the same process could lift the ban.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np

from refpeft.errors import RefpeftError


class ReferenceCalled(RefpeftError):
    """A backend under certification called the reference."""


_poisoned_for: str | None = None
_shared = False


@contextmanager
def poisoned(backend: str, *, shared: bool = False):
    """Within this context the reference refuses to answer, in every thread; ``shared``: unless no array is a NumPy one."""
    global _poisoned_for, _shared
    before = _poisoned_for, _shared
    _poisoned_for, _shared = backend, shared
    try:
        yield
    finally:
        _poisoned_for, _shared = before


def guard(operation: str, arguments) -> None:
    """Refuse the call if the reference is poisoned for these arguments."""
    if _poisoned_for is not None and not (_shared and not any(isinstance(a, np.ndarray) for a in arguments)):
        raise ReferenceCalled(
            f"{operation}: backend {_poisoned_for!r} called the reference while it was being certified."
        )
