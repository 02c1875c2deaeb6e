"""The array: a value, its bound, and what a rounding to storage or a sum in any order adds to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refpeft.numerics.bounded.addends import Addends
from refpeft.numerics.bounded.upward import magnitude, up
from refpeft.numerics.doubledouble import DoubleDouble
from refpeft.numerics.duck import DuckArray
from refpeft.numerics.formats import round_to_format
from refpeft.numerics.precision import RoundingModel


class Bounded(DuckArray):
    """An array of values, each with an error bound.

    Parameters
    ----------
    value : float64 array or DoubleDouble
        The golden value.
    error : float64 array of the same shape
        At least the distance from ``value`` of anything an admitted algorithm computes in its place.
    model : RoundingModel
    addends : Addends or callable, optional
        Where the value is a sum; a callable gives them when they are first asked for, which few sums are.
    """

    def __init__(self, value, error, model: RoundingModel, addends: Addends | Callable[[], Addends] | None = None):
        self.value, self.error, self.model, self._addends = value, error, model, addends
        self._before_storing: np.ndarray | None = None
        self._factor = 1.0

    @classmethod
    def input(cls, array, model: RoundingModel) -> Bounded:
        """Data that the subject is given: exact, unless it may flush subnormals."""
        values = np.asarray(array).astype(np.float64)
        error = np.zeros(values.shape)
        if model.precision.flush_to_zero:
            error = np.where(np.abs(values) < model.precision.storage.tiny, np.abs(values), 0.0)
        return cls(DoubleDouble(values) if model.exact_golden else values, error, model)

    @classmethod
    def scalar(cls, number: float, model: RoundingModel) -> Bounded:
        """An attribute or a literal: one rounding at the accumulation precision, none if it is representable there."""
        exact = np.asarray(number, np.float64)
        distance = np.abs(exact - round_to_format(exact, model.precision.accumulation))
        return cls(DoubleDouble(exact) if model.exact_golden else exact, up(distance), model)

    def parts(self):
        return self.value, self.error

    def rebuild(self, value, error):
        return Bounded(value, error, self.model)

    def lift(self, constant):
        return Bounded.scalar(constant, self.model)

    @property
    def magnitude(self) -> np.ndarray:
        """|value| as float64, never below it."""
        return magnitude(self.value)

    @property
    def reach(self) -> np.ndarray:
        """The largest magnitude that a computed value may have."""
        return up(self.magnitude + self.error)

    @property
    def addends(self) -> Addends:
        """What the value is a sum of: itself alone, where it is none."""
        if self._addends is None:
            return Addends(self.error, self.reach, 1, 1, self.reach, self._factor)
        if callable(self._addends):
            self._addends = self._addends()
        return self._addends

    def remember(self, sources, move):
        """Elements of a sum remain one wherever they are moved."""
        self._factor = max(a._factor for a in sources)
        factor = self._factor

        def moved() -> Addends:
            inherited, terms, whole = (
                move(lambda a, name=name: getattr(a.addends, name)) for name in ("inherited", "terms", "whole")
            )
            count, parts = max(a.addends.count for a in sources), max(a.addends.parts for a in sources)
            return Addends(inherited, terms, count, parts, whole, factor)

        if any(a._addends is not None for a in sources):
            self._addends = moved

    def stored(self, value, inherited, own=0.0, factor: float = 1.0) -> Bounded:
        """A primitive's result: inherited error, its ``own`` before storing, and one rounding to storage.

        Where the result may exceed the largest finite number, the bound is infinite. ``factor`` is what a number among the
        operands contributed and what may as well multiply the result, after it underflowed or overflowed without.
        """
        model = self.model
        computed = up(magnitude(value) + inherited + own)
        rounding = model.store * computed + np.where(computed > 0, max(1.0, factor) * model.store_floor, 0.0)
        finite = computed <= min(1.0, factor) * model.precision.storage.max
        result = Bounded(value, np.where(finite, up(inherited + own + rounding), np.inf), model)
        result._before_storing, result._factor = up(inherited + own), factor
        return result

    def accumulated(self, value, inherited, terms, count, factor: float = 1.0) -> Bounded:
        """A sum of ``count`` terms whose magnitudes sum to ``terms``, in any order, then stored.

        ``count`` is an int, or an array of them for each element of the result; ``factor`` as for `stored`.
        """
        model = self.model
        if np.ndim(count):
            table = np.array([model.accumulate(n) for n in range(int(np.max(count, initial=0)) + 1)])
            coefficient, longest = table[count], int(np.max(count, initial=0))
        else:
            coefficient, longest = model.accumulate(count), count
        terms, inherited = up(terms, longest), up(inherited, longest)
        own = up(coefficient * terms + np.where(terms > 0, max(1.0, factor) * model.underflow(count), 0.0))
        result = self.stored(value, inherited, own, factor)
        result.error = np.where(terms + own <= min(1.0, factor) * model.largest_partial, result.error, np.inf)
        error = result.error

        def addends() -> Addends:
            reach = up(magnitude(value) + error)
            return Addends(up(error - own), terms, max(1, int(longest)), 1, reach, factor)

        result._addends = addends
        return result

    def summed(self, value, sum: Addends) -> Bounded:
        """A chain of additions in any order: contractions may be joined, parts may be stored on the way."""
        model, own, late = self.model, np.zeros(value.shape), max(1.0, sum.factor)
        finite = np.ones(value.shape, bool)
        if sum.count > sum.parts:
            own = own + model.accumulate(sum.count) * sum.terms
            own = own + np.where(sum.terms > 0, late * model.underflow(sum.count), 0.0)
            finite &= up(sum.terms + own) <= model.largest_partial
        if sum.parts > 2:
            stored = model.store * (1 + sum.parts * model.store) * sum.whole
            own = own + sum.parts * (stored + late * model.store_floor)
            finite &= up(sum.whole + own) <= model.precision.storage.max
        result = self.stored(value, sum.inherited, up(own), late)
        result.error = np.where(finite, result.error, np.inf)
        result._addends, result._factor = sum, 1.0
        return result

    def __repr__(self):
        return f"Bounded({self.value!r} +- {self.error!r})"
