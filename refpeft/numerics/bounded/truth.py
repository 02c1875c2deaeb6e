"""Comparisons of bounded arrays, whose truth may turn within the errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refpeft.numerics.bounded.array import Bounded
from refpeft.numerics.precision import RoundingModel


class Ambiguous:
    """A truth value per element, with a mark where errors could turn it.

    Attributes
    ----------
    value, unsure : boolean arrays
    model : RoundingModel or None
        That of the arrays that were compared.
    """

    def __init__(self, value, unsure, model: RoundingModel | None = None):
        self.value, self.unsure, self.model = value, unsure, model

    @property
    def shape(self):
        return self.value.shape

    def __and__(self, other):
        return logical_and(self, other)

    def __or__(self, other):
        return logical_not(logical_and(logical_not(self), logical_not(other)))

    def __invert__(self):
        return logical_not(self)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        chosen: dict[Callable, Callable] = {
            np.logical_and: Ambiguous.__and__,
            np.logical_or: Ambiguous.__or__,
            np.logical_not: Ambiguous.__invert__,
        }
        if ufunc not in chosen or method != "__call__":
            raise TypeError(f"numpy.{ufunc.__name__} of truth values is outside refpeft's set of primitives.")
        return chosen[ufunc](*(as_truth(i) for i in inputs))

    def __array_function__(self, function, types, args, kwargs):
        if function is not np.where or len(args) != 3:
            raise TypeError(f"numpy.{function.__name__} of truth values is outside refpeft's set of primitives.")
        mask, *branches = args
        model = as_truth(mask).model or next(x.model for x in branches if isinstance(x, Bounded))
        return Bounded.rules["where"](
            mask, *(x if isinstance(x, Bounded) else Bounded.scalar(x, model) for x in branches)
        )

    def __array__(self, *args, **kwargs):
        raise TypeError("truth values of Bounded arrays are never converted to NumPy implicitly.")

    def __bool__(self):
        raise TypeError("a source never branches on the truth value of an array.")


def as_truth(mask) -> Ambiguous:
    """``mask`` itself, or a plain one, which is sure."""
    return mask if isinstance(mask, Ambiguous) else Ambiguous(np.asarray(mask), np.zeros(np.shape(mask), bool))


def logical_and(a, b) -> Ambiguous:
    """Sure to be false where either is surely false."""
    a, b = as_truth(a), as_truth(b)
    surely_false = (~a.value & ~a.unsure) | (~b.value & ~b.unsure)
    return Ambiguous(a.value & b.value, (a.unsure | b.unsure) & ~surely_false, a.model or b.model)


def logical_not(a) -> Ambiguous:
    """As sure as what it negates."""
    a = as_truth(a)
    return Ambiguous(~a.value, a.unsure, a.model)
