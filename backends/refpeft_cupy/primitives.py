"""refpeft's own primitives on CuPy arrays: what NumPy has no dispatching function for."""

from __future__ import annotations

import cupy
import cupyx.scipy.special
import numpy as np
from cupy.lib.stride_tricks import sliding_window_view

from refpeft.numerics.formats import FLOAT32, FORMATS, as_format
from refpeft.numerics.primitives import register_array
from refpeft_cupy.cast import narrowed, widened


def register() -> None:
    """Tell refpeft's primitives about CuPy's arrays."""
    rules = (take, windows, fold, scatter_add, solve, real_ifft2, circular_matmul, round_to, positions, topk)
    register_array("cupy", erf=cupyx.scipy.special.erf, **{rule.__name__: rule for rule in rules})


def take(x, index, axis=0):
    """Either may be a constant of the source, on the host."""
    return cupy.take(cupy.asarray(x), cupy.asarray(index), axis=axis)


def windows(x, kernel, stride, dilation):
    (kh, kw), (sh, sw), (dh, dw) = kernel, stride, dilation
    view = sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(-2, -1))
    return view[..., ::sh, ::sw, ::dh, ::dw]


def fold(patches, shape, stride, dilation):
    (oh, ow, kh, kw), (sh, sw), (dh, dw) = patches.shape[-4:], stride, dilation
    total = cupy.zeros(patches.shape[:-4] + tuple(shape), patches.dtype)
    for p in range(kh):
        for q in range(kw):
            rows, columns = slice(p * dh, p * dh + sh * oh, sh), slice(q * dw, q * dw + sw * ow, sw)
            total[..., rows, columns][..., :oh, :ow] += patches[..., p, q]
    return total


_segment_sum = cupy.ElementwiseKernel(
    "raw T values, raw int64 order, raw int64 first, int64 width",
    "T total",
    """
    const long long row = i / width, column = i % width;
    T sum = 0;
    for (long long k = first[row]; k < first[row + 1]; ++k) sum += values[order[k] * width + column];
    total = sum;
    """,
    "refpeft_segment_sum",
)


def scatter_add(values, index, size):
    """Each row's terms in the order they come in, so that equal inputs give equal bits; atomics would not."""
    values, index = cupy.asarray(values), cupy.asarray(index)
    rest = values.shape[index.ndim :]
    total = cupy.zeros((size, *rest), values.dtype)
    if values.size and total.size:
        order = cupy.argsort(index.reshape(-1), kind="stable")
        first = cupy.searchsorted(index.reshape(-1)[order], cupy.arange(size + 1))
        _segment_sum(cupy.ascontiguousarray(values), order, first, total.size // size, total)
    return total


def solve(a, b):
    batch = cupy.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (cupy.broadcast_to(x, batch + x.shape[-2:]) for x in (a, b))
    return cupy.linalg.solve(a, b) if b.size else cupy.zeros(b.shape, b.dtype)


def real_ifft2(x):
    return cupy.fft.ifft2(x).real if x.size else cupy.zeros(x.shape, x.dtype)


def circular_matmul(a, b):
    n = a.shape[-1]
    if not n:
        return cupy.zeros((*cupy.broadcast_shapes(a.shape[:-3], b.shape[:-3]), a.shape[-3], b.shape[-2], 0), a.dtype)
    spectra = (cupy.moveaxis(cupy.fft.rfft(x), -1, -3) for x in (a, b))
    return cupy.fft.irfft(cupy.moveaxis(cupy.matmul(*spectra), -3, -1), n)


def round_to(x, format):
    """To a dtype of the device; to a format without one in steps of its own, of which a log2 off by an ulp changes nothing.

    What is in float64 stays there, its subnormals of float32 too.
    """
    format = as_format(format)
    if format.name not in FORMATS:
        exponent = np.floor(np.log2(np.maximum(np.absolute(x), 2.0**format.emin)))
        step = 2.0 ** (exponent - format.precision + 1)
        return np.rint(x / step) * step
    if x.dtype == cupy.float64:
        return widened(narrowed(x, format))
    rounded = x.astype(format.dtype)
    return rounded if format.precision >= FLOAT32.precision else rounded.astype(cupy.float32)


def positions(x, axis):
    return cupy.arange(x.shape[axis])


def topk(x, k):
    return cupy.argsort(-x, axis=-1, kind="stable")[..., :k]
