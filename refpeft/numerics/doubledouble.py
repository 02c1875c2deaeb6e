"""Double-double arithmetic: an unevaluated sum hi + lo of two float64, good to about 2**-104 relative.

The golden value where the subject itself computes in float64. Error-free transforms after Dekker (1971) and Knuth;
sums and products after Hida, Li and Bailey (2001, "Library for double-double and quad-double arithmetic"). No
longdouble: that is plain double on ARM and on Windows. Elementary functions go through mpmath, one element at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refpeft.numerics.duck import DuckArray
from refpeft.numerics.primitives import PRIMITIVES, fold, scatter_add, take

_SPLITTER = 134217729.0  # 2**27 + 1
_BLOCK = 1 << 20


def two_sum(a, b):
    """s + e == a + b exactly, s the rounded sum (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def quick_two_sum(a, b):
    """`two_sum` where |a| >= |b| or a == 0 (Dekker)."""
    s = a + b
    return s, b - (s - a)


def two_prod(a, b):
    """p + e == a * b, p the rounded product (Dekker, Veltkamp); exact unless p overflows or e is below 2**-1074."""
    product = a * b
    (a, i), (b, j) = np.frexp(a), np.frexp(b)
    p = a * b
    t = _SPLITTER * a
    ah = t - (t - a)
    al = a - ah
    t = _SPLITTER * b
    bh = t - (t - b)
    bl = b - bh
    return product, np.ldexp(((ah * bh - p) + ah * bl + al * bh) + al * bl, i + j)


class DoubleDouble(DuckArray):
    """An array hi + lo.

    Parameters
    ----------
    hi, lo : float64 arrays of one shape, |lo| at most half an ulp of hi.
    """

    def __init__(self, hi, lo=None):
        self.hi = np.asarray(hi, np.float64)
        self.lo = np.zeros_like(self.hi) if lo is None else np.asarray(lo, np.float64)
        if self.lo.shape != self.hi.shape:
            self.lo = np.broadcast_to(self.lo, self.hi.shape)

    def parts(self):
        return self.hi, self.lo

    def rebuild(self, hi, lo):
        return DoubleDouble(hi, lo)

    def lift(self, constant):
        return DoubleDouble(constant)

    def __repr__(self):
        return f"DoubleDouble({self.hi!r}, {self.lo!r})"


rule = DoubleDouble.rule


@rule("add")
def add(a, b):
    with np.errstate(over="ignore", invalid="ignore"):
        plain, e = two_sum(a.hi, b.hi)
        t, f = two_sum(a.lo, b.lo)
        s, e = quick_two_sum(plain, e + t)
        return _finite(plain, *quick_two_sum(s, e + f))


@rule("subtract")
def _(a, b):
    return add(a, negative(b))


@rule("negative")
def negative(a):
    return DoubleDouble(-a.hi, -a.lo)


@rule("multiply")
def multiply(a, b):
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        p, e = two_prod(a.hi, b.hi)
        return _finite(p, *quick_two_sum(p, e + (a.hi * b.lo + a.lo * b.hi)))


@rule("divide")
def _(a, b):
    """Long division of the significands: two corrections by what is left over."""
    with np.errstate(all="ignore"):
        plain = a.hi / b.hi
        (a, i), (b, j) = _significand(a), _significand(b)
        q = DoubleDouble(a.hi / b.hi)
        for _ in range(2):
            q = add(q, DoubleDouble(add(a, negative(multiply(q, b))).hi / b.hi))
        return _finite(plain, np.ldexp(q.hi, i - j), np.ldexp(q.lo, i - j))


@rule("sqrt")
def _(a):
    """One Newton step on the significand, scaled so that its exponent is even."""
    with np.errstate(all="ignore"):
        plain = np.sqrt(a.hi)
        a, i = _significand(a)
        a, half = DoubleDouble(np.ldexp(a.hi, i % 2), np.ldexp(a.lo, i % 2)), (i - i % 2) // 2
        root = DoubleDouble(np.sqrt(a.hi))
        rest = add(a, negative(multiply(root, root)))
        root = add(root, DoubleDouble(np.where(root.hi > 0, rest.hi / (2 * root.hi), 0.0)))
        return _finite(plain, np.ldexp(root.hi, half), np.ldexp(root.lo, half))


def _significand(a):
    """``a`` over a power of two with hi from 1/2 to 1, and the power: arithmetic on it stays in range."""
    hi, exponent = np.frexp(a.hi)
    return DoubleDouble(hi, np.ldexp(a.lo, -exponent)), exponent


@rule("absolute")
def _(a):
    return _choose(a.hi >= 0, a, negative(a))


def _compare(symbol: str) -> Callable:
    def compare(a, b):
        difference = add(a, negative(b))
        sign = np.where(difference.hi != 0, np.sign(difference.hi), np.sign(difference.lo))
        return getattr(np, symbol)(sign, 0)

    return compare


for _symbol in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"):
    rule(_symbol)(_compare(_symbol))


@rule("where")
def _choose(mask, a, b):
    return DoubleDouble(np.where(mask, a.hi, b.hi), np.where(mask, a.lo, b.lo))


@rule("maximum")
def _(a, b):
    return _choose((a >= b) | np.isnan(a.hi), a, b)


@rule("minimum")
def _(a, b):
    return _choose((a <= b) | np.isnan(a.hi), a, b)


def _elementary(name: str) -> Callable:
    def compute(hi: float, lo: float) -> tuple[float, float]:
        import mpmath

        with mpmath.workprec(140):
            exact = getattr(mpmath, name)(mpmath.mpf(hi) + mpmath.mpf(lo))
            exact = mpmath.nan if isinstance(exact, mpmath.mpc) else exact
            high = float(exact)
            return high, float(exact - high) if np.isfinite(high) else 0.0

    def apply(a):
        plain = PRIMITIVES[name].plain
        with np.errstate(all="ignore"):
            pairs = [compute(*x) if np.isfinite(x[0]) else (plain(x[0]), 0.0) for x in zip(a.hi.flat, a.lo.flat)]
        hi, lo = np.array(pairs, np.float64).reshape(-1, 2).T
        return DoubleDouble(hi.reshape(a.shape), lo.reshape(a.shape))

    return apply


for _name in ("exp", "log", "tanh", "sin", "cos", "erf"):
    rule(_name)(_elementary(_name))


@rule("sum")
def total(a, axis=None, keepdims=False):
    """Pairwise along the axis, every addition in double-double."""
    if axis is None:
        flat = total(a.reshape(-1), axis=0)
        return flat.reshape((1,) * a.ndim) if keepdims else flat
    if isinstance(axis, tuple):
        for one in sorted((x % a.ndim for x in axis), reverse=True):
            a = total(a, axis=one, keepdims=keepdims)
        return a
    hi, lo = np.moveaxis(a.hi, axis, 0), np.moveaxis(a.lo, axis, 0)
    if hi.shape[0] == 0:
        hi = lo = np.zeros((1, *hi.shape[1:]))
    while (n := hi.shape[0]) > 1:
        half = n // 2
        merged = add(DoubleDouble(hi[:half], lo[:half]), DoubleDouble(hi[half : 2 * half], lo[half : 2 * half]))
        odd = n % 2 == 1
        hi = np.concatenate([merged.hi, hi[2 * half :]]) if odd else merged.hi
        lo = np.concatenate([merged.lo, lo[2 * half :]]) if odd else merged.lo
    result = DoubleDouble(hi[0], lo[0])
    return np.expand_dims(result, axis) if keepdims else result


@rule("matmul")
def _(a, b):
    """Every product in double-double, then `total`; a few rows at a time, so that memory stays small."""
    left, right = a.ndim == 1, b.ndim == 1
    a = a[None, :] if left else a
    b = b[:, None] if right else b
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    step = max(1, _BLOCK // max(1, k * n * int(np.prod(batch))))
    rows = [total(a[..., i : i + step, :, None] * b[..., None, :, :], axis=-2) for i in range(0, m, step)]
    c = np.concatenate(rows, axis=-2) if rows else DoubleDouble(np.zeros((*batch, 0, n)))
    c = c[..., 0, :] if left else c
    return c[..., 0] if right else c


@rule("scatter_add")
def _(values, index, size):
    """Rows of equal index are summed in rounds: the first of each, then the second, ..."""
    flat = values.reshape(index.size, *values.shape[index.ndim :])
    order = np.argsort(index.reshape(-1), kind="stable")
    ordered = index.reshape(-1)[order]
    rank = np.arange(index.size) - np.searchsorted(ordered, ordered)
    result = DoubleDouble(np.zeros((size, *flat.shape[1:])))
    for occurrence in range(int(rank.max(initial=-1)) + 1):
        chosen = order[rank == occurrence]
        rows = index.reshape(-1)[chosen]
        part = [scatter_add(take(x, chosen), rows, size) for x in flat.parts()]
        result = add(result, DoubleDouble(*part))
    return result


@rule("fold")
def _(patches, shape, stride, dilation):
    """One window position at a time, each an exact placement."""
    result = DoubleDouble(np.zeros(patches.shape[:-4] + tuple(shape)))
    kh, kw = patches.shape[-2:]
    for p in range(kh):
        for q in range(kw):
            alone = np.zeros((kh, kw))
            alone[p, q] = 1.0
            part = [fold(x * alone, shape, stride, dilation) for x in patches.parts()]
            result = add(result, DoubleDouble(*part))
    return result


@rule("max")
def _(a, axis=None, keepdims=False):
    return _extreme(a, axis, keepdims, np.max)


@rule("min")
def _(a, axis=None, keepdims=False):
    return _extreme(a, axis, keepdims, np.min)


def _extreme(a, axis, keepdims, extreme):
    hi = extreme(a.hi, axis=axis, keepdims=True)
    lo = extreme(np.where(a.hi == hi, a.lo, -np.inf if extreme is np.max else np.inf), axis=axis, keepdims=True)
    lo = np.where(np.isnan(hi), 0.0, lo)
    return DoubleDouble(hi, lo) if keepdims else DoubleDouble(hi, lo).reshape(extreme(a.hi, axis=axis).shape)


@rule("topk")
def _(a, k):
    order = np.lexsort((-a.lo, -a.hi), axis=-1)
    return order[..., :k]


@rule("round_to")
def _(a, format):
    """Rounding of hi decides, except where hi lies on a tie: then lo does."""
    from refpeft.numerics.formats import as_format, round_to_format, ulp

    target = as_format(format)
    if target.precision >= 53:
        return DoubleDouble(a.hi)
    nudged = a.hi + np.sign(a.lo) * ulp(a.hi, as_format("float64"))
    tie = np.abs(a.hi - round_to_format(a.hi, target)) * 2 == ulp(a.hi, target)
    return DoubleDouble(round_to_format(np.where(tie & (a.lo != 0), nudged, a.hi), target))


@rule("detach")
def _(a):
    return a


@rule("straight_through")
def _(value, surrogate):
    return value


@rule("dropout")
def _(x, mask, keep):
    return np.where(mask, x / keep, 0.0)


def _finite(plain, hi, lo):
    """Beyond the finite numbers the plain result alone counts: error-free transforms make NaN of infinity."""
    finite = np.isfinite(hi) & np.isfinite(plain)
    if finite.all():
        return DoubleDouble(hi, lo)
    return DoubleDouble(np.where(finite, hi, plain), np.where(finite, lo, 0.0))
