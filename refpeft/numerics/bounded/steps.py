"""Rules of the primitives that have a meaning of their own."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.bounded.array import Bounded
from refpeft.numerics.bounded.upward import magnitude, up
from refpeft.numerics.formats import as_format
from refpeft.numerics.primitives import round_to

rule = Bounded.rule


@rule("round_to")
def _(a, format):
    """A step of the definition: exact on exact data, and on a primitive of exact data, which it then rounds in place of
    storage. Else both sides' half ulps join the error.
    """
    target = as_format(format)
    value = round_to(a.value, format)
    moved = up(a.error + 2 * target.unit * a.reach + target.subnormal)
    moved = np.where(a.reach <= target.max, moved, np.inf)
    inexact = (a.error if a._before_storing is None else a._before_storing) > 0
    precision = a.model.precision
    flushed = precision.flush_to_zero & (magnitude(value) < precision.storage.tiny)
    return a.rebuild(value, np.where(inexact, moved, np.where(flushed, magnitude(value), 0.0)))


@rule("detach")
def _(a):
    return a


@rule("straight_through")
def _(value, surrogate):
    return value


@rule("dropout")
def _(x, mask, keep):
    """As x * (1 / keep), the reciprocal rounded: it errs more than x / keep."""
    return np.where(mask, x * (1.0 / keep), 0.0)
