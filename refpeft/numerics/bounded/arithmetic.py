"""Rules of the operations that round once: + - * / and the square root."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.bounded.addends import Addends
from refpeft.numerics.bounded.array import Bounded
from refpeft.numerics.bounded.upward import magnitude, up

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
            result._addends = lambda: _scaled(number, other.addends)
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


@rule("negative")
def _(a):
    result = Bounded(-a.value, a.error, a.model, a._addends)
    result._factor = a._factor
    return result


@rule("absolute")
def _(a):
    return a.rebuild(np.absolute(a.value), a.error)
