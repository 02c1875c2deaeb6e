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
    identity = np.broadcast_to(b.lift(np.eye(n)), (count, n, n))
    both = np.concatenate([b, identity], axis=-1)
    solved = [_by_parts(one, other) for one, other in zip(a, both)]
    x = np.stack(solved) if solved else both
    product = x[..., b.shape[-1] :] @ b
    return product.reshape(*batch, *b.shape[-2:])


def _by_parts(a, b):
    """One matrix, cut into the groups of unknowns that share equations: no order of elimination mixes two of them."""
    used = a.value != 0
    linked = used.T.astype(float) @ used > 0
    for _ in range(a.shape[0].bit_length()):
        linked = linked.astype(float) @ linked > 0
    groups = [np.flatnonzero(g) for g in np.unique(linked, axis=0)]
    equations = [np.flatnonzero(used[:, g].any(axis=1)) for g in groups]
    if any(len(e) != len(g) or not len(g) for e, g in zip(equations, groups)):
        raise Inexact("solve: the matrix is singular.")
    if any(len(g) > LARGEST for g in groups):
        raise Inexact(f"solve: more than {LARGEST} unknowns hang together.")
    if not groups:
        return b
    parts = [_in_every_order(take(take(a, e), g, axis=1), take(b, e)) for e, g in zip(equations, groups)]
    return take(np.concatenate(parts), np.argsort(np.concatenate(groups)))


def _in_every_order(a, b):
    """Each row with a first element leads once; the pivot's reciprocal must be exact too."""
    results = []
    for lead in np.flatnonzero(a.value[:, 0]) if len(a) else ():
        order = np.r_[lead, np.delete(np.arange(len(a)), lead)]
        np.divide(1.0, a[int(lead), 0])
        results.append(eliminate(take(a, order), take(b, order), _in_every_order))
    if len(a) and not results:
        raise Inexact("solve: the matrix is singular.")
    return results[0] if results else b
