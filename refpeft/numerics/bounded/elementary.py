"""Rules of the smooth functions, each from a bound on its slope."""

from __future__ import annotations

import functools
import math

import numpy as np

from refpeft.numerics.bounded.array import Bounded
from refpeft.numerics.bounded.upward import leading, magnitude, up
from refpeft.numerics.primitives import PRIMITIVES


def _elementary(name: str):
    """Rule for a smooth function from a bound on its slope over the interval of radius e around x."""

    def declare(spread):
        @Bounded.rule(name)
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


@_elementary("exp")
def _(a, e):
    """exp(x + e) - exp(x) = exp(x) expm1(e)."""
    return np.exp(leading(a.value)) * np.expm1(e)


@_elementary("log")
def _(a, e):
    """log(x) - log(x - e) <= e / (x - e)."""
    return np.where(leading(a.value) > e, e / (leading(a.value) - e), np.inf)


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
