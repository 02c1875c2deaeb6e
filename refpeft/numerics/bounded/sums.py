"""Rules of sums and of sums of products, taken in any order."""

from __future__ import annotations

import math

import numpy as np

from refpeft.numerics.bounded.array import Bounded
from refpeft.numerics.bounded.upward import up
from refpeft.numerics.primitives import fold, scatter_add

rule = Bounded.rule


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
