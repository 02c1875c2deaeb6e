"""Arrays in the precision of the arithmetic, as matrices."""

import functools
import math
from collections.abc import Sequence

import numpy as np

WIDE = np.dtype(np.float32), np.dtype(np.float64)


def wide(array):
    """As float64 where it is that, else as float32: numbers of 16 bits are computed with in it."""
    if array is None or array.dtype in WIDE:
        return array
    return array.astype(np.float32)


def rows(array):
    """The last axis as it is, the others as one; wide."""
    return wide(array.reshape(math.prod(array.shape[:-1]), array.shape[-1]))


def narrow(array, shape, dtype):
    """Rounded to the dtype of storage, in the shape that the signature has."""
    if array.shape != shape or not shape:
        array = np.atleast_1d(array).reshape(shape)
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def in_order(array):
    """In row-major order, copied only where it is not."""
    return array.astype(array.dtype, order="C", copy=False)


def dropped(x, mask, keep):
    """Inverted dropout by a given mask."""
    return x if mask is None else wide(x) * mask / keep


def kept(array, residuals: bool | Sequence[str], *needing: str):
    """An array for the gradients that need it; where none of them will be wanted, zeros of its shape that take no memory."""
    if residuals is True or set(needing) & set(residuals):
        return array
    return _hollow(array.shape, array.dtype)


@functools.lru_cache(maxsize=256)
def _hollow(shape, dtype):
    return np.broadcast_to(np.zeros((), dtype), shape)


def longest(vectors) -> float:
    """The length of the longest vector along the last axis; NaN where one has a NaN."""
    return math.sqrt(np.einsum("...i,...i->...", vectors, vectors).max(initial=0))


def over_batch(array, axes):
    """Summed over all but the last axes."""
    batch = tuple(range(array.ndim - axes))
    return narrow(wide(array).sum(axis=batch), array.shape[len(batch) :], array.dtype)
