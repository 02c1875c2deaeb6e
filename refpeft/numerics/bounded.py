"""Bounded: each value with a proven bound on how far a computed one may lie from it.

Running a source on `Bounded` arrays runs an error analysis: one rule per primitive says how errors of the operands come
through and what the primitive's own rounding adds. The result's ``error`` bounds |computed - value| for every
algorithm that evaluates the same expression at the given precision, with or without FMA, each intermediate stored or
kept. Sums are taken in any order, and a chain of additions counts as one sum together with the contractions in it: a kernel
may start its accumulator with the bias, or join two products into one. A number multiplies either factor of a product, or the
product. Nothing is set by hand per operation.

The analysis itself is rounded upwards: every bound is enlarged by more than its own evaluation can have lost.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.doubledouble import DoubleDouble
from refpeft.numerics.duck import DuckArray
from refpeft.numerics.formats import as_format, round_to_format
from refpeft.numerics.precision import RoundingModel
from refpeft.numerics.primitives import PRIMITIVES, fold, round_to, scatter_add, topk


@dataclass(frozen=True)
class Addends:
    """What a sum is made of, so that it can be taken in any order.

    Attributes
    ----------
    inherited : float64 array
        Errors that the addends bring along, each part's own rounding to storage included.
    terms : float64 array
        Sum of the magnitudes of all terms, those inside contractions too.
    count : int
        How many terms.
    parts : int
        How many addends at the level of the expression, each of which may be stored.
    whole : float64 array
        Sum of the magnitudes of the parts.
    factor : float
        The largest number that may multiply the parts after they are added.
    """

    inherited: np.ndarray
    terms: np.ndarray
    count: int
    parts: int
    whole: np.ndarray
    factor: float = 1.0

    def __add__(self, other: Addends) -> Addends:
        return Addends(
            up(self.inherited + other.inherited),
            up(self.terms + other.terms),
            self.count + other.count,
            self.parts + other.parts,
            up(self.whole + other.whole),
            max(self.factor, other.factor),
        )


class Bounded(DuckArray):
    """An array of values, each with an error bound.

    Parameters
    ----------
    value : float64 array or DoubleDouble
        The golden value.
    error : float64 array of the same shape
        At least the distance from ``value`` of anything an admitted algorithm computes in its place.
    model : RoundingModel
    addends : Addends, optional
        Where the value is a sum.
    """

    def __init__(self, value, error, model: RoundingModel, addends: Addends | None = None):
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
        return self._addends or Addends(self.error, self.reach, 1, 1, self.reach, self._factor)

    def remember(self, sources, move):
        """Elements of a sum remain one wherever they are moved."""
        self._factor = max(a._factor for a in sources)
        if any(a._addends for a in sources):
            inherited, terms, whole = (
                move(lambda a, name=name: getattr(a.addends, name)) for name in ("inherited", "terms", "whole")
            )
            count, parts = max(a.addends.count for a in sources), max(a.addends.parts for a in sources)
            self._addends = Addends(inherited, terms, count, parts, whole, self._factor)

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
        result._addends = Addends(up(result.error - own), terms, max(1, int(longest)), 1, result.reach, factor)
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


def up(bound, operations: int = 8) -> np.ndarray:
    """``bound`` enlarged by more than ``operations`` float64 roundings can have taken from it."""
    return np.asarray(bound) * (1 + (operations + 8) * 2.0**-52)


def magnitude(value) -> np.ndarray:
    """|value| as float64, rounded up."""
    return up(np.abs(value.hi) + np.abs(value.lo), 2) if isinstance(value, DoubleDouble) else np.abs(value)


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
        return chosen[ufunc](*(_truth(i) for i in inputs))

    def __array_function__(self, function, types, args, kwargs):
        if function is not np.where or len(args) != 3:
            raise TypeError(f"numpy.{function.__name__} of truth values is outside refpeft's set of primitives.")
        mask, *branches = args
        model = _truth(mask).model or next(x.model for x in branches if isinstance(x, Bounded))
        return Bounded.rules["where"](
            mask, *(x if isinstance(x, Bounded) else Bounded.scalar(x, model) for x in branches)
        )

    def __array__(self, *args, **kwargs):
        raise TypeError("truth values of Bounded arrays are never converted to NumPy implicitly.")

    def __bool__(self):
        raise TypeError("a source never branches on the truth value of an array.")


def _truth(mask) -> Ambiguous:
    return mask if isinstance(mask, Ambiguous) else Ambiguous(np.asarray(mask), np.zeros(np.shape(mask), bool))


def logical_and(a, b) -> Ambiguous:
    """Sure to be false where either is surely false."""
    a, b = _truth(a), _truth(b)
    surely_false = (~a.value & ~a.unsure) | (~b.value & ~b.unsure)
    return Ambiguous(a.value & b.value, (a.unsure | b.unsure) & ~surely_false, a.model or b.model)


def logical_not(a) -> Ambiguous:
    """As sure as what it negates."""
    a = _truth(a)
    return Ambiguous(~a.value, a.unsure, a.model)


rule = Bounded.rule


@rule("add")
def _(a, b):
    return a.summed(a.value + b.value, a.addends + b.addends)


@rule("subtract")
def _(a, b):
    return a.summed(a.value - b.value, a.addends + b.addends)


@rule("multiply")
def _(a, b):
    """|a'b' - ab| <= |a| eb + ea |b| + ea eb. A number times a sum is a sum of the products."""
    inherited = a.magnitude * b.error + a.error * b.magnitude + a.error * b.error
    result = a.stored(a.value * b.value, up(inherited), factor=a._factor * b._factor)
    number, other = (a, b) if a.ndim == 0 else (b, a)
    if number.ndim == 0 and number.reach > 0:
        result._factor *= float(number.reach)
        if other._addends is not None:
            result._addends = _scaled(number, other.addends)
    return result


def _scaled(number: Bounded, sum: Addends) -> Addends:
    """``sum`` with each term multiplied by ``number``, and rounded once more."""
    model, factor = number.model, number.reach
    relative = model.store + number.error / np.where(factor > 0, factor, 1.0)
    rounding = relative * factor * sum.terms + model.store_floor + factor * sum.count * model.sum_floor
    return Addends(
        up(factor * sum.inherited + rounding),
        up(factor * sum.terms),
        sum.count,
        sum.parts,
        up(factor * sum.whole),
        float(factor) * sum.factor,
    )


@rule("divide")
def _(a, b):
    """|a'/b' - a/b| <= (|a/b| eb + ea) / (|b| - eb); infinite where b' may be zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = a.value / b.value
        margin = b.magnitude - up(b.error)
        spread = up((magnitude(quotient) * b.error + a.error) / margin)
        return a.stored(quotient, np.where(margin > 0, spread, np.inf), factor=a._factor)


@rule("sqrt")
def _(a):
    """sqrt(x) - sqrt(x - e) = e / (sqrt(x) + sqrt(x - e)); infinite where x - e may be negative."""
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(a.value)
        rest = a.magnitude - up(a.error)
        spread = np.where(a.error > 0, up(a.error / (magnitude(root) + np.sqrt(np.maximum(rest, 0.0)))), 0.0)
        return a.stored(root, np.where(rest >= 0, spread, np.inf))


def _elementary(name: str):
    """Rule for a smooth function from a bound on its slope over the interval of radius e around x."""

    def declare(spread):
        @rule(name)
        @functools.wraps(spread)
        def apply(a):
            value = PRIMITIVES[name].function(a.value)
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                inherited = np.where(a.error > 0, up(spread(a, a.error), 64), 0.0)
                own = a.model.elementary * (magnitude(value) + inherited)
            least = a.model.precision.elementary_ulps * a.model.precision.accumulation.subnormal
            own = up(own + np.where(own > 0, least, 0.0))
            return a.stored(value, inherited, own)

        return apply

    return declare


def _float(value) -> np.ndarray:
    return value.hi if isinstance(value, DoubleDouble) else value


@_elementary("exp")
def _(a, e):
    """exp(x + e) - exp(x) = exp(x) expm1(e)."""
    return np.exp(_float(a.value)) * np.expm1(e)


@_elementary("log")
def _(a, e):
    """log(x) - log(x - e) <= e / (x - e)."""
    return np.where(_float(a.value) > e, e / (_float(a.value) - e), np.inf)


@_elementary("tanh")
def _(a, e):
    """The slope is largest nearest zero: 1 - tanh(x)**2 = 1 / cosh(x)**2."""
    return np.minimum(e / np.cosh(np.minimum(np.maximum(a.magnitude - e, 0.0), 300.0)) ** 2, 2.0)


@_elementary("erf")
def _(a, e):
    """The slope is largest nearest zero: 2/sqrt(pi) exp(-x**2)."""
    return np.minimum(e * (2 / math.sqrt(math.pi)) * np.exp(-(np.maximum(a.magnitude - e, 0.0) ** 2)), 2.0)


@_elementary("sin")
def _(a, e):
    """The slope is at most 1."""
    return np.minimum(e, 2.0)


@_elementary("cos")
def _(a, e):
    """The slope is at most 1."""
    return np.minimum(e, 2.0)


@rule("negative")
def _(a):
    result = Bounded(-a.value, a.error, a.model, a._addends)
    result._factor = a._factor
    return result


@rule("absolute")
def _(a):
    return a.rebuild(np.absolute(a.value), a.error)


@rule("maximum")
def _(a, b):
    return a.rebuild(np.maximum(a.value, b.value), np.maximum(a.error, b.error))


@rule("minimum")
def _(a, b):
    return a.rebuild(np.minimum(a.value, b.value), np.maximum(a.error, b.error))


def _comparison(name: str):
    def compare(a, b):
        gap = magnitude(a.value - b.value)
        radius = a.error + b.error
        return Ambiguous(getattr(np, name)(a.value, b.value), (gap <= radius) & (radius > 0), a.model)

    return compare


for _name in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"):
    rule(_name)(_comparison(_name))


@rule("where")
def _(mask, a, b):
    """Where errors could turn the mask, the other branch is as admissible: its distance joins the bound."""
    mask = _truth(mask)
    value = np.where(mask.value, a.value, b.value)
    chosen = np.where(mask.value, a.error, b.error)
    turned = np.maximum(a.error, b.error) + magnitude(a.value - b.value)
    result = a.rebuild(value, np.where(mask.unsure, up(turned), chosen))
    result._factor = max(a._factor, b._factor)
    return result


@rule("sum")
def _(a, axis=None, keepdims=False):
    over = {"axis": axis, "keepdims": keepdims}
    value = np.sum(a.value, **over)
    count = a.size // max(1, math.prod(value.shape))
    return a.accumulated(value, np.sum(a.error, **over), np.sum(a.reach, **over), max(0, count - 1), a._factor)


def _as_operand(x: Bounded, unit: float, least: float) -> Bounded:
    """``x`` as a contraction reads it, rounded once more."""
    return x.rebuild(x.value, up(x.error + unit * x.reach + np.where(x.reach > 0, least, 0.0)))


def _instead(operand: Bounded, factor: float, least: float) -> np.ndarray:
    """What ``operand`` may lose where the number beside the other one multiplies it instead: its digits, or itself."""
    model = operand.model
    return np.where(up(factor * operand.reach) <= model.precision.storage.max, model.store_floor + least, np.inf)


@rule("matmul")
def _(a, b):
    """|A'B' - AB| <= |A| Eb + Ea |B| + Ea Eb, then gamma_K (|A| + Ea)(|B| + Eb)."""
    model, factors = a.model, (a._factor, b._factor)
    operands, least = model.precision.operands, 0.0
    if operands is not None:
        least = model.precision.storage.tiny if model.precision.flush_to_zero else operands.subnormal
        a, b = (_as_operand(x, operands.unit, max(1.0, x._factor) * least) for x in (a, b))
    value, terms = np.matmul(a.value, b.value), np.matmul(a.reach, b.reach)
    inherited = np.zeros(value.shape)
    if factors[0] != 1:
        inherited = inherited + np.matmul(a.reach / factors[0], _instead(b, factors[0], least))
    if factors[1] != 1:
        inherited = inherited + np.matmul(_instead(a, factors[1], least), b.reach / factors[1])
    if np.any(b.error):
        inherited = inherited + np.matmul(a.reach, b.error)
    if np.any(a.error):
        inherited = inherited + np.matmul(a.error, b.magnitude)
    return a.accumulated(value, inherited, terms, a.shape[-1], factors[0] * factors[1])


@rule("scatter_add")
def _(values, index, size):
    ones = np.ones(index.size)
    count = np.maximum(scatter_add(ones, index.reshape(-1), size).astype(int) - 1, 0)
    value = scatter_add(values.value, index, size)
    count = np.broadcast_to(count.reshape((size,) + (1,) * (len(value.shape) - 1)), value.shape)
    error, terms = scatter_add(values.error, index, size), scatter_add(values.reach, index, size)
    return values.accumulated(value, error, terms, count, values._factor)


@rule("fold")
def _(patches, shape, stride, dilation):
    value, error, terms = (fold(x, shape, stride, dilation) for x in (patches.value, patches.error, patches.reach))
    return patches.accumulated(value, error, terms, math.prod(patches.shape[-2:]) - 1, patches._factor)


@rule("max")
def _(a, axis=None, keepdims=False):
    over = {"axis": axis, "keepdims": keepdims}
    return a.rebuild(np.max(a.value, **over), np.max(a.error, **over))


@rule("min")
def _(a, axis=None, keepdims=False):
    over = {"axis": axis, "keepdims": keepdims}
    return a.rebuild(np.min(a.value, **over), np.max(a.error, **over))


@rule("topk")
def _(a, k):
    """A selection is proven only where the last one taken and the first one left stand further apart than their errors."""
    order = topk(a.value, a.shape[-1])
    values, errors = (np.take_along_axis(x, order, axis=-1) for x in (_float(a.value), a.error))
    gap = values[..., :-1] - values[..., 1:] - errors[..., :-1] - errors[..., 1:]
    if np.any((gap <= 0)[..., :k] & (errors[..., :-1] > 0)[..., :k]):
        raise DomainError(
            f"topk: the {k} largest are not determined within the error of the values they are chosen by."
        )
    return order[..., :k]


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
