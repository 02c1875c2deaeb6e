"""Gaussian elimination: what ``solve`` means in double-double, and where it is exact.

One step takes the first row for the pivot's, subtracts multiples of it from the others and leaves a problem of one unknown
less; the first unknown follows from the rest. Which row comes first is the interpretation's choice: in double-double the one
with the largest first element, in `Exact` each one that has a first element at all.
"""

from __future__ import annotations

import math

import numpy as np

from refpeft.numerics.doubledouble import DoubleDouble
from refpeft.numerics.exact import Exact, Inexact
from refpeft.numerics.primitives import take

LARGEST = 4
"""How many unknowns may hang together for `Exact` to try all orders of elimination."""


def eliminate(a, b, rest):
    """X with A X = B, the pivot in A's first row; ``rest`` solves what is left of one unknown less."""
    top, below = a[..., :1, :], a[..., 1:, :]
    factor = below[..., :1] / top[..., :1]
    others = rest(below[..., 1:] - factor * top[..., 1:], b[..., 1:, :] - factor * b[..., :1, :])
    first = (b[..., :1, :] - top[..., 1:] @ others) / top[..., :1]
    return np.concatenate([first, others], axis=-2)


@DoubleDouble.rule("solve")
def _(a, b):
    """Partial pivoting, every operation in double-double."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return _pivoted(*(np.broadcast_to(x, batch + x.shape[-2:]) for x in (a, b)))


def _pivoted(a, b):
    if a.shape[-1] == 0:
        return b
    lead = np.argmax(np.abs(a.hi[..., 0]), axis=-1)[..., None]
    rows = np.broadcast_to(np.arange(a.shape[-1]), a.shape[:-1])
    order = np.concatenate([lead, np.where(rows == lead, 0, rows)[..., 1:]], axis=-1)[..., None]
    a, b = (DoubleDouble(*(np.take_along_axis(part, order, axis=-2) for part in x.parts())) for x in (a, b))
    return eliminate(a, b, _pivoted)


@Exact.rule("solve")
def _(a, b):
    """Exact by elimination in every order of the rows, and by the product with the inverse."""
    batch, n = np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-1]
    count = math.prod(batch)
    a, b = (np.broadcast_to(x, batch + x.shape[-2:]).reshape(count, *x.shape[-2:]) for x in (a, b))
    inverse = np.zeros((count, n, n))
    for matrices, equations, unknowns in _groups(a.value):
        part = a.rebuild(a.value[matrices[:, None, None], equations[:, :, None], unknowns[:, None, :]])
        sides = [x[matrices[:, None], equations] for x in (b.value, np.broadcast_to(np.eye(n), inverse.shape))]
        solved = _in_every_order(part, a.rebuild(np.concatenate(sides, axis=-1)))
        inverse[matrices[:, None], unknowns] = solved.value[..., b.shape[-1] :]
    product = a.rebuild(inverse) @ b
    return product.reshape(*batch, *b.shape[-2:])


def _groups(matrices: np.ndarray):
    """The unknowns that share equations, which no order of elimination takes apart, those of equal number together.

    Yields
    ------
    which matrix (g,), which rows (g, k), which columns (g, k)
    """
    by_size: dict[int, list] = {}
    for which, used in enumerate(matrices != 0):
        linked = used.T.astype(float) @ used > 0
        for _ in range(len(used).bit_length()):
            linked = linked.astype(float) @ linked > 0
        for group in np.unique(linked, axis=0):
            rows, columns = np.flatnonzero(used[:, group].any(axis=1)), np.flatnonzero(group)
            if len(rows) != len(columns) or not len(rows):
                raise Inexact("solve: the matrix is singular.")
            by_size.setdefault(len(rows), []).append((which, rows, columns))
    if max(by_size, default=0) > LARGEST:
        raise Inexact(f"solve: more than {LARGEST} unknowns hang together.")
    for groups in by_size.values():
        yield tuple(np.array(part) for part in zip(*groups))


def _in_every_order(a, b):
    """Each row with a first element leads once; the pivot's reciprocal must be exact too."""
    n = a.shape[-1]
    if n == 0:
        return b
    solved = np.full(b.shape, np.nan)
    for lead in range(n):
        led = np.flatnonzero(a.value[:, lead, 0])
        if led.size:
            order = np.r_[lead, np.delete(np.arange(n), lead)]
            first, second = (take(take(x, led), order, axis=1) for x in (a, b))
            np.divide(1.0, first[:, 0, 0])
            solved[led] = eliminate(first, second, _in_every_order).value
    if np.any(np.isnan(solved)):
        raise Inexact("solve: the matrix is singular.")
    return a.rebuild(solved)
