"""Provenance: while a backend runs under certification, the reference is poisoned.

A call through the catalogue, or of a source with plain NumPy arrays, then raises: a backend cannot pass by asking the
oracle. A backend that runs the reference's source on its own array type declares that (``source: shared``) and is let through.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np

from refpeft.errors import RefpeftError


class ReferenceCalled(RefpeftError):
    """A backend under certification called the reference."""


_poisoned_for: str | None = None


@contextmanager
def poisoned(backend: str):
    """Within this context the reference refuses plain NumPy arrays, in every thread."""
    global _poisoned_for
    before, _poisoned_for = _poisoned_for, backend
    try:
        yield
    finally:
        _poisoned_for = before


def guard(operation: str, arguments) -> None:
    """Refuse the call if the reference is poisoned and an argument is a plain array."""
    if _poisoned_for is not None and any(isinstance(a, np.ndarray) for a in arguments):
        raise ReferenceCalled(
            f"{operation}: backend {_poisoned_for!r} called the reference while it was being certified."
        )
