"""Orders in which a sum can be taken. An error budget covers them all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ORDERS = ("sequential", "reversed", "pairwise", "blocked", "blas")
"""``blas`` leaves contractions to NumPy's matmul, and other sums to its sum; where neither fits it is ``sequential``."""

_BLOCK = 8


def total(terms: np.ndarray, order: str, add: Callable = np.add) -> np.ndarray:
    """Sum over axis 0.

    Parameters
    ----------
    terms : (count, *shape)
    order : str
        One of `ORDERS`.
    add : callable
        One addition, with the rounding that belongs to it.

    Returns
    -------
    (*shape,)
        Zeros where there are no terms; the term itself, unrounded, where there is one.
    """
    if len(terms) == 0:
        return np.zeros(terms.shape[1:], terms.dtype)
    if order == "reversed":
        return total(terms[::-1], "sequential", add)
    if order == "pairwise":
        while len(terms) > 1:
            half = len(terms) // 2
            terms = np.concatenate([add(terms[:half], terms[half : 2 * half]), terms[2 * half :]])
        return terms[0]
    if order == "blocked" and len(terms) > _BLOCK:
        blocks = [total(terms[i : i + _BLOCK], "sequential", add) for i in range(0, len(terms), _BLOCK)]
        return total(np.stack(blocks), "reversed", add)
    result = terms[0]
    for term in terms[1:]:
        result = add(result, term)
    return result


def rounds(index: np.ndarray, size: int) -> np.ndarray:
    """Which elements are added up where, one round after another.

    Parameters
    ----------
    index : (count,) integers
        Where each element goes, from 0 to size - 1.
    size : int

    Returns
    -------
    (longest, size) integers
        Row k has for each place the k-th element that goes there, and ``count`` where there is none.
    """
    order = np.argsort(index, kind="stable")
    first = np.searchsorted(index[order], np.arange(size + 1))
    position = first[:-1] + np.arange(int(np.max(np.diff(first), initial=0)))[:, None]
    padded = np.append(order, index.size)
    return np.where(position < first[1:], padded[np.minimum(position, index.size)], index.size)
