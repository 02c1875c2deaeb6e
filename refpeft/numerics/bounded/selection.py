"""Rules of the choices: comparisons, where, extrema and the k largest."""

from __future__ import annotations

import numpy as np

from refpeft.errors import DomainError
from refpeft.numerics.bounded.array import Bounded
from refpeft.numerics.bounded.truth import Ambiguous, as_truth
from refpeft.numerics.bounded.upward import leading, magnitude, up
from refpeft.numerics.primitives import topk

rule = Bounded.rule


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
    mask = as_truth(mask)
    value = np.where(mask.value, a.value, b.value)
    chosen = np.where(mask.value, a.error, b.error)
    turned = np.maximum(a.error, b.error) + magnitude(a.value - b.value)
    result = a.rebuild(value, np.where(mask.unsure, up(turned), chosen))
    result._factor = max(a._factor, b._factor)
    return result


@rule("maximum")
def _(a, b):
    return a.rebuild(np.maximum(a.value, b.value), np.maximum(a.error, b.error))


@rule("minimum")
def _(a, b):
    return a.rebuild(np.minimum(a.value, b.value), np.maximum(a.error, b.error))


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
    values, errors = (np.take_along_axis(x, order, axis=-1) for x in (leading(a.value), a.error))
    gap = values[..., :-1] - values[..., 1:] - errors[..., :-1] - errors[..., 1:]
    if np.any((gap <= 0)[..., :k] & (errors[..., :-1] > 0)[..., :k]):
        raise DomainError(
            f"topk: the {k} largest are not determined within the error of the values they are chosen by."
        )
    return order[..., :k]
