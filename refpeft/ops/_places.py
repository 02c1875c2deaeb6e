"""Places in a matrix, counted along its rows, of which no two are alike."""

from __future__ import annotations

import numpy as np

from refpeft.errors import DomainError, ShapeError


def distinct(operation: str, places: np.ndarray, what: str = "places") -> None:
    """Refuse a place that comes more than once."""
    first, often = np.unique(places, return_counts=True)
    if np.any(often > 1):
        raise DomainError(f"{operation}: {what} must be distinct, but {first[often > 1][0]} comes {often.max()} times.")


def rows_and_columns(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(2, k): the row of each place, and its column."""
    return np.stack(np.divmod(places, shape[1]))


def counted(indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(k,): the places that have these rows and columns.

    Raises
    ------
    ShapeError
        If one lies outside of the matrix.
    """
    if indices.ndim != 2 or len(indices) != 2:
        raise ShapeError(f"rows and columns must have shape (2, k), but came as {indices.shape}.")
    rows, columns = indices.astype(np.int64)
    for what, given, size in (("rows", rows, shape[0]), ("columns", columns, shape[1])):
        if given.size and not (given.min() >= 0 and given.max() < size):
            raise ShapeError(f"{what} must be from 0 to {size - 1}, but {given.min()} to {given.max()} came.")
    return rows * shape[1] + columns


def drawn(random: np.random.Generator, arrays: dict, attributes: dict) -> dict:
    """As many distinct places of the weight as a problem has, for `Operation.makes_valid`."""
    return {"places": random.permutation(arrays["weight"].size)[: arrays["places"].size]}
