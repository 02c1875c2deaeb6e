"""Arrays of either device: NumPy's on the host shim, CuPy's on a GPU."""

from __future__ import annotations

import functools
import importlib
from contextlib import nullcontext

import numpy as np

from refpeft_cupy.kernel import dtype_of


def namespace(array):
    """The module that the array comes from."""
    return np if isinstance(array, np.ndarray) else _cupy()


@functools.cache
def _cupy():
    return importlib.import_module("cupy")


def device_of(arrays):
    """The device of the first array, as a context in which new ones are made; on the host there is nothing to choose."""
    first = next(x for x in arrays if x is not None)
    return nullcontext() if isinstance(first, np.ndarray) else first.device


def empty(like, shape, dtype=None):
    """A new array from where ``like`` comes from, its elements undefined; of its dtype where none is named."""
    return namespace(like).empty(shape, like.dtype if dtype is None else dtype_of(dtype))


def contiguous(array):
    """The array, copied where it has strides of its own; None stays None."""
    return array if array is None or array.flags.c_contiguous else namespace(array).ascontiguousarray(array)


def blocks(count: int, size: int) -> int:
    """How many blocks of ``size`` cover ``count``."""
    return -(-count // size)
