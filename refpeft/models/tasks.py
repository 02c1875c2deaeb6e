"""The task of each text, which Poly, MTL-LoRA and multitask prompt tuning take beside it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from refpeft.errors import CapabilityError, DomainError, ShapeError
from refpeft.methods import Method
from refpeft.operation import find

INPUT = "task"


@functools.cache
def takes(operation: str) -> bool:
    """Whether an operation needs it."""
    return any(a.name == INPUT for a in find(operation).signature.inputs)


def checked(tasks: Any, count: int) -> np.ndarray:
    """Tasks (n,) of as many texts.

    Raises
    ------
    ShapeError
    """
    tasks = np.asarray(tasks)
    if tasks.shape != (count,) or tasks.dtype.kind != "i":
        raise ShapeError(f"tasks are integers of shape ({count},), but {tasks.dtype} of shape {tasks.shape} came.")
    return tasks.astype(np.int64)


def required(site: str, operation: str, method: Method | None, tasks: np.ndarray | None) -> np.ndarray:
    """The tasks of a pass, for what stands at a site.

    Raises
    ------
    CapabilityError
        If none came.
    DomainError
        If the method has no such task.
    """
    if tasks is None:
        raise CapabilityError(f"{site}: {operation} needs the task of each text, but none came.")
    count = getattr(method, "tasks", 0)
    if tasks.size and not 0 <= tasks.min() <= tasks.max() < count:
        raise DomainError(f"{site}: tasks lie from 0 to {count - 1}, but {tasks.min()} to {tasks.max()} came.")
    return tasks
