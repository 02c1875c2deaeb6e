"""Exact: raises unless every intermediate, and every partial sum in any order, is representable.

An input that gets through a source in this interpretation has one right answer: all admitted algorithms, in any order, with
or without FMA, fused or not, must give these very numbers. So a check on it needs no tolerance.

Sums are judged by their quantum: if all terms are multiples of q = 2**k and sum|terms| < 2**p q, then every partial sum
in every order is a multiple of q below 2**p q, which a format with p bits represents. A chain of additions counts as one
sum together with the contractions in it, as for `Bounded`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refpeft.errors import RefpeftError
from refpeft.numerics.doubledouble import two_prod, two_sum
from refpeft.numerics.duck import DuckArray
from refpeft.numerics.formats import Format, as_format, round_to_format
from refpeft.numerics.precision import Precision
from refpeft.numerics.primitives import PRIMITIVES, fold, scatter_add, topk


class Inexact(RefpeftError):
    """A primitive's result, or a partial sum on the way to it, is not representable."""


@dataclass(frozen=True)
class Terms:
    """What a sum is made of, so that it can be judged in any order.

    Attributes
    ----------
    total : float64 array
        Sum of the magnitudes of all terms, those inside contractions too.
    quantum : int array
        log2 of a power of two that divides all of them.
    parts : int
        How many addends at the level of the expression, each of which may be stored.
    whole, grain : arrays
        Sum of the magnitudes of the parts, and log2 of a power of two that divides all of them.
    """

    total: np.ndarray
    quantum: np.ndarray
    parts: int
    whole: np.ndarray
    grain: np.ndarray

    def __add__(self, other: Terms) -> Terms:
        return Terms(
            self.total + other.total,
            np.minimum(self.quantum, other.quantum),
            self.parts + other.parts,
            self.whole + other.whole,
            np.minimum(self.grain, other.grain),
        )

    def scaled(self, number) -> Terms:
        """Each term multiplied by ``number``."""
        factor, power = np.abs(number), quantum_of(number)
        return Terms(factor * self.total, power + self.quantum, self.parts, factor * self.whole, power + self.grain)


class Exact(DuckArray):
    """An array of values that are all representable in a precision.

    Parameters
    ----------
    value : float64 array
    precision : Precision
    """

    def __init__(self, value, precision: Precision):
        self.value, self.precision = np.asarray(value, np.float64), precision
        self._terms: Terms | None = None

    @classmethod
    def input(cls, array, precision: Precision) -> Exact:
        """Data or an attribute: must be representable where the subject stores it."""
        return cls(np.asarray(array).astype(np.float64), precision).checked("input")

    @classmethod
    def apply_primitive(cls, name, args, kwargs):
        """As ever, but zero times a constant is zero, however the constant is rounded."""
        if name in ("multiply", "matmul") and any(isinstance(a, cls) and a.vanishes for a in args):
            args = tuple(a if isinstance(a, cls) else np.zeros(np.shape(a)) for a in args)
        return super().apply_primitive(name, args, kwargs)

    def parts(self):
        return (self.value,)

    def rebuild(self, value):
        return Exact(value, self.precision)

    def lift(self, constant):
        return self.rebuild(constant).checked("constant", self.precision.accumulation)

    def checked(self, name: str, format=None) -> Exact:
        """This array, if storage represents each element.

        Raises
        ------
        Inexact
            Naming the primitive otherwise.
        """
        format = format or self.precision.storage
        if not np.all(np.isfinite(self.value)) or not np.array_equal(round_to_format(self.value, format), self.value):
            raise Inexact(f"{name}: a value is not representable in {format}.")
        if self.precision.flush_to_zero and np.any((self.value != 0) & (np.abs(self.value) < format.tiny)):
            raise Inexact(f"{name}: a value is subnormal in {format}, where the backend may flush it to zero.")
        return self

    @property
    def terms(self) -> Terms:
        """What the value is a sum of: itself alone, where it is none."""
        if self._terms is not None:
            return self._terms
        alone, quantum = np.abs(self.value), quantum_of(self.value)
        return Terms(alone, quantum, 1, alone, quantum)

    @property
    def vanishes(self) -> bool:
        """Whether all terms are zero."""
        return not np.any(self.value if self._terms is None else self._terms.total)

    def remember(self, sources, move):
        """Elements of a sum remain one wherever they are moved."""
        if any(a._terms for a in sources):
            total, quantum, whole, grain = (
                move(lambda a, name=name: getattr(a.terms, name)) for name in ("total", "quantum", "whole", "grain")
            )
            self._terms = Terms(total, quantum, max(a.terms.parts for a in sources), whole, grain)

    def __repr__(self):
        return f"Exact({self.value!r})"


rule = Exact.rule


def quantum_of(values) -> np.ndarray:
    """log2 of the largest power of two that divides each value; a large number for zero."""
    fraction, exponent = np.frexp(values)
    significand = np.ldexp(fraction, 53).astype(np.int64)
    return np.where(significand == 0, 1 << 20, exponent - 54 + np.frexp(significand & -significand)[1])


def check_sum(name: str, terms, quantum, precision: Precision, format: Format | None = None) -> None:
    """All partial sums of terms with this total magnitude and this quantum are representable."""
    format = format or (precision.storage if precision.splits > 1 else precision.accumulation)
    floor = math.log2(format.tiny if precision.flush_to_zero else format.subnormal)
    used = terms != 0
    with np.errstate(over="ignore"):
        ratio = np.where(used, terms, 1.0) / np.exp2(np.where(used, quantum, 0).astype(np.float64))
    if np.any(used & ((ratio >= 2.0**format.precision) | (quantum < floor) | (terms > format.max))):
        raise Inexact(f"{name}: a partial sum may not be representable in {format}.")


def _chain(name: str, result: Exact, terms: Terms) -> Exact:
    """A sum of two that may be taken apart and summed in another order, where it is one of more than two."""
    if terms.parts > 2 or not np.array_equal(terms.total, terms.whole):
        check_sum(name, terms.total, terms.quantum, result.precision)
    if terms.parts > 2:
        check_sum(name, terms.whole, terms.grain, result.precision, result.precision.storage)
    result._terms = terms
    return result


def contracted(name: str, result: Exact, total, quantum) -> Exact:
    """A sum over an axis, whose terms have this total magnitude and this quantum."""
    check_sum(name, total, quantum, result.precision)
    result.checked(name)._terms = Terms(total, quantum, 1, np.abs(result.value), quantum_of(result.value))
    return result


def _product(a, b):
    """a * b, and what rounding took from it: not zero where bits fall below float64's smallest number either."""
    value, lost = two_prod(a, b)
    below = (a != 0) & (b != 0) & (quantum_of(a) + quantum_of(b) < -1074)
    return value, np.where(below, np.inf, lost)


@rule("add")
def _(a, b):
    value, lost = two_sum(a.value, b.value)
    return _chain("add", _without_loss("add", a, value, lost), a.terms + b.terms)


@rule("subtract")
def _(a, b):
    value, lost = two_sum(a.value, -b.value)
    return _chain("subtract", _without_loss("subtract", a, value, lost), a.terms + b.terms)


@rule("multiply")
def _(a, b):
    value, lost = _product(a.value, b.value)
    result = _without_loss("multiply", a, value, lost)
    number, other = (a, b) if a.ndim == 0 else (b, a)
    if number.ndim == 0 and other._terms is not None:
        result._terms = other._terms.scaled(number.value)
    return result


@rule("divide")
def _(a, b):
    if np.any(b.value == 0):
        raise Inexact("divide: the divisor is zero.")
    value = a.value / b.value
    product, lost = _product(value, b.value)
    return _without_loss("divide", a, value, np.abs(product - a.value) + np.abs(lost))


@rule("sqrt")
def _(a):
    if np.any(a.value < 0):
        raise Inexact("sqrt: the radicand is negative.")
    value = np.sqrt(a.value)
    product, lost = _product(value, value)
    return _without_loss("sqrt", a, value, np.abs(product - a.value) + np.abs(lost))


def _without_loss(name: str, like: Exact, value, lost) -> Exact:
    if np.any(lost != 0):
        raise Inexact(f"{name}: a result needs more bits than float64 has.")
    return like.rebuild(value).checked(name)


def _anchored(name: str, at: float, gives: float):
    """A transcendental function is exact at one point only; exp and its kin also where they vanish in any rounding."""

    @rule(name)
    def apply(a):
        vanishes = (name == "exp") & (a.value < 2 * math.log(a.precision.accumulation.subnormal))
        saturates = (name in ("tanh", "erf")) & (np.abs(a.value) > 64)
        if not np.all((a.value == at) | vanishes | saturates):
            raise Inexact(f"{name}: exact only at {at:g} and where it is flat.")
        return a.rebuild(np.where(a.value == at, gives, np.where(saturates, np.sign(a.value), 0.0)))


_anchored("exp", 0.0, 1.0)
_anchored("log", 1.0, 0.0)
_anchored("tanh", 0.0, 0.0)
_anchored("erf", 0.0, 0.0)
_anchored("sin", 0.0, 0.0)
_anchored("cos", 0.0, 1.0)


def _selecting(name: str):
    @rule(name)
    def apply(*args, **kwargs):
        first = next(a for a in args if isinstance(a, Exact))
        return first.rebuild(PRIMITIVES[name].plain(*(getattr(a, "value", a) for a in args), **kwargs))


@rule("negative")
def _(a):
    result = a.rebuild(-a.value)
    result._terms = a._terms
    return result


for _name in ("absolute", "maximum", "minimum", "where", "max", "min", "detach"):
    _selecting(_name)


def _comparing(name: str):
    @rule(name)
    def apply(a, b):
        return PRIMITIVES[name].plain(a.value, b.value)


for _name in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"):
    _comparing(_name)


@rule("sum")
def _(a, axis=None, keepdims=False):
    over = {"axis": axis, "keepdims": keepdims}
    quantum = np.min(quantum_of(a.value), initial=1 << 20, **over)
    return contracted("sum", a.rebuild(np.sum(a.value, **over)), np.sum(np.abs(a.value), **over), quantum)


@rule("matmul")
def _(a, b):
    left, right = np.atleast_2d(a.value), b.value[:, None] if b.ndim == 1 else b.value
    if a.precision.operands is not None:
        for operand in (a, b):
            operand.checked("matmul", a.precision.operands)
    rows, columns = (quantum_of(x).min(axis=k, initial=1 << 20) for x, k in ((left, -1), (right, -2)))
    quantum = rows[..., :, None] + columns[..., None, :]
    result = a.rebuild(a.value @ b.value)
    return contracted("matmul", result, np.abs(a.value) @ np.abs(b.value), quantum.reshape(result.shape))


@rule("scatter_add")
def _(values, index, size):
    total = scatter_add(np.abs(values.value), index, size)
    quantum = np.full(total.shape, quantum_of(values.value).min(initial=1 << 20))
    return contracted("scatter_add", values.rebuild(scatter_add(values.value, index, size)), total, quantum)


@rule("fold")
def _(patches, shape, stride, dilation):
    total = fold(np.abs(patches.value), shape, stride, dilation)
    quantum = np.full(total.shape, quantum_of(patches.value).min(initial=1 << 20))
    return contracted("fold", patches.rebuild(fold(patches.value, shape, stride, dilation)), total, quantum)


@rule("topk")
def _(a, k):
    return topk(a.value, k)


@rule("round_to")
def _(a, format):
    if not np.array_equal(round_to_format(a.value, as_format(format)), a.value):
        raise Inexact(f"round_to: a value is not representable in {as_format(format)}.")
    return a


@rule("straight_through")
def _(value, surrogate):
    return value


@rule("dropout")
def _(x, mask, keep):
    """Both x / keep and x * (1 / keep) must be exact."""
    np.divide(keep.rebuild(1.0), keep)
    return np.where(mask, x / keep, 0.0)
