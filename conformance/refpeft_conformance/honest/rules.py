"""One rule per primitive: NumPy in the format of the computation, rounded once."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from refpeft.numerics.primitives import PRIMITIVES, windows
from refpeft_conformance.honest.array import MOST_TERMS, Honest
from refpeft_conformance.honest.summation import rounds

rule = Honest.rule


def _sum_of_two(name: str, sign: int) -> None:
    @rule(name)
    def _(a, b):
        if not a.floating or not b.floating:
            return a.rebuild(PRIMITIVES[name].plain(a.value, b.value))
        return a.summed(_joined(a, b, sign))


def _joined(a: Honest, b: Honest, sign: int) -> np.ndarray:
    """The terms of a + b, or a - b."""
    shape = np.broadcast_shapes(a.shape, b.shape)

    def spread(terms):
        axes = (1,) * (len(shape) - terms.ndim + 1)
        return np.broadcast_to(terms.reshape(len(terms), *axes, *terms.shape[1:]), (len(terms), *shape))

    count = (len(a.addends) + len(b.addends)) * int(np.prod(shape))
    first, second = (a.addends, b.addends) if count <= MOST_TERMS else (a.value[None], b.value[None])
    return np.concatenate([spread(first), sign * spread(second)])


_sum_of_two("add", 1)
_sum_of_two("subtract", -1)


@rule("negative")
def _(a):
    return Honest(-a.value, a.arithmetic, raw=-a.raw, terms=None if a.terms is None else -a.terms)


@rule("multiply")
def _(a, b):
    """A number multiplies the terms of a sum, or waits for the sum."""
    if not a.floating or not b.floating:
        return a.rebuild(a.value * b.value)
    arithmetic = a.arithmetic
    number, other = (a, b) if a.ndim == 0 else (b, a)
    if arithmetic.style == "late" and number.ndim == 0 and number.value != 0:
        return Honest(None, arithmetic, late=(number, other))
    if number.ndim == 0 and other.terms is not None and len(other.terms) > 1:
        return a.computed(number.value * other.value, arithmetic.product(arithmetic.rounded(other.terms), number.value))
    product = arithmetic.product(a.value, b.value)
    return a.computed(product, product[None] if product.dtype != arithmetic.wide else None)


@rule("dropout")
def _(x, mask, keep):
    """By division, or by a rounded reciprocal."""
    scaled = x / keep if x.arithmetic.style == "stored" else x * keep.rebuild(1.0 / keep.value)
    return np.where(mask, scaled, 0.0)


@rule("matmul")
def _(a, b):
    left, right = a.value if a.ndim > 1 else a.value[None], b.value if b.ndim > 1 else b.value[:, None]
    each = np.broadcast(left[..., :, :, None], right[..., None, :, :])
    if a.arithmetic.order == "blas" or each.size > MOST_TERMS:
        return a.computed(np.matmul(a.value, b.value))
    terms = np.moveaxis(a.arithmetic.product(left[..., :, :, None], right[..., None, :, :]), -2, 0)
    shape = each.shape[: each.ndim - 3] + left.shape[-2:-1] * (a.ndim > 1) + right.shape[-1:] * (b.ndim > 1)
    return a.accumulated(terms.reshape(len(terms), *shape))


@rule("sum")
def _(a, axis=None, keepdims=False):
    if not a.floating:
        return a.rebuild(np.sum(a.value, axis=axis, keepdims=keepdims))
    if a.arithmetic.order == "blas":
        return a.computed(np.sum(a.value, axis=axis, keepdims=keepdims))
    axes = tuple(range(a.ndim)) if axis is None else normalize_axis_tuple(axis, a.ndim)
    rest = tuple(i for i in range(a.ndim) if i not in axes)
    kept = tuple(a.shape[i] for i in rest)
    count = math.prod(a.shape[i] for i in axes)
    shape = tuple(1 if i in axes else n for i, n in enumerate(a.shape)) if keepdims else kept
    return a.accumulated(np.transpose(a.factor, axes + rest).reshape(count, *shape))


@rule("scatter_add")
def _(values, index, size):
    index = _value(index)
    if values.arithmetic.order == "blas":
        return values.computed(PRIMITIVES["scatter_add"].plain(values.value, index, size))
    rest = values.shape[index.ndim :]
    terms = values.factor.reshape(index.size, *rest)
    return values.accumulated(_scattered(terms, index.reshape(-1), size))


@rule("fold")
def _(patches, shape, stride, dilation):
    if patches.arithmetic.order == "blas":
        return patches.computed(PRIMITIVES["fold"].plain(patches.value, shape, stride, dilation))
    lead, (oh, ow, *kernel) = patches.shape[:-4], patches.shape[-4:]
    goes = windows(np.arange(shape[0] * shape[1]).reshape(shape), kernel, stride, dilation)[:oh, :ow].reshape(-1)
    terms = np.moveaxis(patches.factor.reshape(*lead, goes.size), -1, 0)
    terms = np.moveaxis(_scattered(terms, goes, shape[0] * shape[1]), 1, -1)
    return patches.accumulated(terms.reshape(len(terms), *lead, *shape))


def _scattered(terms, index, size: int) -> np.ndarray:
    """The terms of each place's sum, zeros where it has fewer than others."""
    padded = np.concatenate([terms, np.zeros((1, *terms.shape[1:]), terms.dtype)])
    return padded[rounds(index, size)]


@rule("solve")
def _(a, b):
    """By elimination, or by the product with the inverse; some orders meet the equations from the last one on."""
    way = slice(None, None, 1 if a.arithmetic.order in ("blas", "sequential") else -1)
    left, right = a.value[..., way, :], b.value[..., way, :]
    solve = PRIMITIVES["solve"].plain
    if a.arithmetic.style == "stored":
        return a.computed(solve(left, right))
    inverse = solve(left, np.eye(left.shape[-1], dtype=left.dtype)[way])
    return a.computed(inverse @ b.value)


@rule("real_ifft2")
def _(x):
    """By a fast transform, or as a plain sum over all frequencies; divided by their number before or after."""
    transform, (m, n) = PRIMITIVES["real_ifft2"].plain, x.shape[-2:]
    if x.arithmetic.order == "blas" or not x.size or x.size * m * n > MOST_TERMS:
        return x.computed(transform(x.value))
    cosines = m * n * transform(np.eye(m * n).reshape(m * n, m, n))
    cosines = x.arithmetic.rounded(cosines.reshape(m * n, *(1,) * (x.ndim - 2), m, n))
    elements = np.moveaxis(x.factor.reshape(*x.shape[:-2], m * n), -1, 0)[..., None, None]
    if x.arithmetic.style == "stored":
        total = x.arithmetic.accumulate(x.arithmetic.product(elements, cosines))
        return x.computed(total / x.arithmetic.rounded(m * n))
    return x.accumulated(x.arithmetic.product(x.arithmetic.rounded(elements / (m * n)), cosines))


@rule("circular_matmul")
def _(a, b):
    """By transforms, or as a plain sum of products."""
    (i, k, n), j = a.shape[-3:], b.shape[-2]
    if a.arithmetic.order == "blas" or a.size * b.size * n > MOST_TERMS or a.ndim + b.ndim > 6:
        return a.computed(PRIMITIVES["circular_matmul"].plain(a.value, b.value))
    turned = b.value[..., (np.arange(n) - np.arange(n)[:, None]) % n]
    left, right = np.transpose(a.value, (1, 2, 0))[..., None, None], np.transpose(turned, (0, 2, 1, 3))[:, :, None]
    return a.accumulated(a.arithmetic.product(left, right).reshape(k * n, i, j, n))


@rule("round_to")
def _(a, format):
    return a.rebuild(PRIMITIVES["round_to"].plain(a.raw, format))


@rule("straight_through")
def _(value, surrogate):
    return value


@rule("detach")
def _(a):
    return a


def _elementary(name: str) -> None:
    """Rounded to nearest where intermediates are stored, else toward zero: by less than one ulp, as a good libm does."""

    @rule(name)
    def _(a):
        exact = PRIMITIVES[name].plain(a.value.astype(np.float64))
        nearest = a.arithmetic.rounded(exact)
        if a.arithmetic.style == "stored":
            return a.computed(nearest)
        below = np.nextafter(nearest, np.zeros_like(nearest))
        return a.computed(np.where(np.abs(nearest) > np.abs(exact), below, nearest))


for _name in ("exp", "log", "tanh", "sin", "cos", "erf"):
    _elementary(_name)


def _one_rounding(name: str) -> None:
    @rule(name)
    def _(*args, **kwargs):
        first = next(a for a in args if isinstance(a, Honest))
        return first.computed(PRIMITIVES[name].plain(*map(_value, args), **kwargs))


def _no_rounding(name: str) -> None:
    @rule(name)
    def _(*args, **kwargs):
        first = next(a for a in args if isinstance(a, Honest))
        return first.rebuild(PRIMITIVES[name].plain(*map(_value, args), **kwargs))


def _value(argument):
    return argument.value if isinstance(argument, Honest) else argument


for _name, _primitive in PRIMITIVES.items():
    if _name not in Honest.rules and _primitive.kind != "structural":
        (_no_rounding if _primitive.kind in ("choice", "extremal", "integer") else _one_rounding)(_name)
for _name in ("absolute", "maximum", "minimum"):
    _no_rounding(_name)
