"""What ``init`` and ``count`` of a method are given, checked in one place: `Method` puts it around those of every method."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping

import numpy as np

from refpeft.errors import AttributeValueError, ShapeError


def of_a_weight(init: Callable) -> Callable:
    """``init``, for a generator and a weight that has as many axes as the method is for, and that the method fits."""

    @functools.wraps(init)
    def checked(self, random, weight, *data, **named):
        if random is not None and not isinstance(random, np.random.Generator):
            raise AttributeValueError(
                f"{type(self).__name__}: random must be a numpy.random.Generator, but {random!r} came."
            )
        require_weight(self, weight)
        _require_named(self, "init", named, inspect.signature(init).parameters)
        self.fits(*weight.shape)
        return init(self, random, weight, *data, **named)

    return checked


def require_weight(method, weight) -> None:
    """Refuse a weight of another number of axes than the method is for, or without elements.

    Raises
    ------
    ShapeError
        Naming method, what was expected and what came.
    """
    shape = getattr(weight, "shape", None)
    if shape is None or len(shape) != method.axes or 0 in shape:
        came = f"a {type(weight).__name__}" if shape is None else f"one of shape {tuple(shape)}"
        axes = "one axis" if method.axes == 1 else f"{method.axes} axes"
        raise ShapeError(f"{type(method).__name__}: weight must be an array of {axes} with elements, but {came} came.")


def _require_named(method, what: str, named: Mapping, names: Collection[str]) -> None:
    """Refuse a name that ``init`` or ``count`` does not take."""
    if strange := [name for name in named if name not in names]:
        taken = ", ".join(name for name in names if name != "self")
        raise AttributeValueError(f"{type(method).__name__}: {what} takes {taken}, but {strange[0]!r} came.")


def of_sizes(count: Callable) -> Callable:
    """``count``, for sizes of at least 1 that the method fits."""
    names = count.__code__.co_varnames[1 : count.__code__.co_argcount]

    @functools.wraps(count)
    def checked(self, *args, **dims):
        _require_named(self, "count", dims, names)
        sizes = dict(zip(names, args)) | dims
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
                raise AttributeValueError(
                    f"{type(self).__name__}: {name} must be an integer of at least 1, but {size!r} came."
                )
        if sizes.keys() >= {"o", "i"}:
            self.fits(sizes["o"], sizes["i"])
        return count(self, *args, **dims)

    return checked
