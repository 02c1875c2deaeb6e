"""The set: every function a reference source may call on arrays, and how a call finds its meaning.

Sources are plain NumPy. NumPy's own dispatch (NEP 13 for ufuncs, NEP 18 for the rest) brings ``np.matmul`` or ``x @ y``
to the array type at hand; where NumPy has no function that dispatches (``erf``, ``windows``, ...), this module defines
one that does. An *interpretation* is an array type with a rule for each name below; `duck.DuckArray` is what they share.

A name's kind says what all interpretations may rely on:

=============  ==========================================================================================
structural     moves or copies elements and computes nothing
elementwise    one rounding an element
choice         comparisons, and ``where``
accumulating   sums of elements (``sum``, ``scatter_add``, ``fold``)
contraction    sums of products (``matmul``, ``real_ifft2``, ``circular_matmul``)
extremal       selects among elements
integer        on integers and truth values (codes, indices, masks): the same in every interpretation
special        has its own meaning, given in its docstring
=============  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from refpeft.numerics.formats import as_format, round_to_format


@dataclass(frozen=True)
class Primitive:
    """One name of the set.

    Attributes
    ----------
    name : str
        The name under which interpretations give their rule.
    kind : str
        One of the kinds in the module's table.
    function : callable
        What a source calls: a NumPy function, or one defined here.
    plain : callable
        What it computes on NumPy arrays.
    """

    name: str
    kind: str
    function: Callable
    plain: Callable


PRIMITIVES: dict[str, Primitive] = {}
_NAME_OF: dict[Callable, str] = {}
_FOREIGN: dict[tuple[str, str], Callable] = {}


def name_of(function: Callable) -> str | None:
    """The primitive's name that a NumPy function or one of ours stands for; None outside the set."""
    return _NAME_OF.get(function)


def register_array(root: str, **rules: Callable) -> None:
    """Give a third party's array type the primitives that NumPy cannot dispatch, without importing it here.

    Parameters
    ----------
    root : str
        The top-level package of the array type, ``"cupy"``.
    **rules : callable
        One function per primitive of our own (``erf``, ``windows``, ...), on that package's arrays.
    """
    _FOREIGN.update({(root, name): rule for name, rule in rules.items()})


def _admit(kind: str, *functions: np.ufunc | Callable, name: str | None = None) -> None:
    first = functions[0]
    key = name or first.__name__
    PRIMITIVES[key] = Primitive(key, kind, first, first)
    _NAME_OF.update(dict.fromkeys(functions, key))


def _own(kind: str):
    """Define a primitive of our own: dispatches on the first argument that is not a plain array."""

    def define(plain: Callable) -> Callable:
        name = plain.__name__

        def function(*args, **kwargs):
            for argument in args:
                kin = type(argument)
                if hasattr(kin, "apply_primitive"):
                    return kin.apply_primitive(name, args, kwargs)
                rule = _FOREIGN.get((kin.__module__.partition(".")[0], name))
                if rule is not None:
                    return rule(*args, **kwargs)
            return plain(*args, **kwargs)

        function.__name__, function.__qualname__, function.__doc__ = name, name, plain.__doc__
        PRIMITIVES[name] = Primitive(name, kind, function, plain)
        _NAME_OF[function] = name
        return function

    return define


_admit("structural", np.reshape)
_admit("structural", np.transpose)
_admit("structural", np.broadcast_to)
_admit("structural", np.concatenate)
_admit("structural", np.stack)
_admit("structural", np.expand_dims)
_admit("structural", np.pad)
_admit("structural", np.flip)
_admit("elementwise", np.add)
_admit("elementwise", np.subtract)
_admit("elementwise", np.multiply)
_admit("elementwise", np.divide)
_admit("elementwise", np.negative)
_admit("elementwise", np.absolute)
_admit("elementwise", np.sqrt)
_admit("elementwise", np.exp)
_admit("elementwise", np.log)
_admit("elementwise", np.tanh)
_admit("elementwise", np.sin)
_admit("elementwise", np.cos)
_admit("elementwise", np.maximum)
_admit("elementwise", np.minimum)
_admit("choice", np.where)
_admit("choice", np.less)
_admit("choice", np.less_equal)
_admit("choice", np.greater)
_admit("choice", np.greater_equal)
_admit("choice", np.equal)
_admit("choice", np.not_equal)
_admit("integer", np.logical_and)
_admit("integer", np.logical_or)
_admit("integer", np.logical_not)
_admit("accumulating", np.sum)
_admit("contraction", np.matmul)
_admit("extremal", np.max, np.amax, name="max")
_admit("extremal", np.min, np.amin, name="min")
_admit("integer", np.floor_divide)
_admit("integer", np.remainder)


@_own("structural")
def getitem(x, key):
    """``x[key]`` with basic indexing: integers, slices, Ellipsis, None."""
    return x[key]


@_own("structural")
def take(x, index, axis=0):
    """Elements of ``x`` along ``axis`` at the integer array ``index``, whose shape replaces that axis.

    ``x`` or ``index`` may be a constant of the source (a codebook, a permutation) as a NumPy array.
    """
    return np.take(x, index, axis=axis)


@_own("structural")
def windows(x, kernel, stride, dilation):
    """Sliding windows over the last two axes.

    Parameters
    ----------
    x : (..., h, w)
    kernel, stride, dilation : (int, int)

    Returns
    -------
    (..., oh, ow, kh, kw), where ``oh = (h - dilation * (kh - 1) - 1) // stride + 1``.
    """
    (kh, kw), (sh, sw), (dh, dw) = kernel, stride, dilation
    reach = (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    view = sliding_window_view(x, reach, axis=(-2, -1))
    return view[..., ::sh, ::sw, ::dh, ::dw]


@_own("accumulating")
def fold(patches, shape, stride, dilation):
    """The adjoint of `windows`: every window's elements added back to where they came from.

    Parameters
    ----------
    patches : (..., oh, ow, kh, kw)
    shape : (int, int)
        (h, w) of the result (..., h, w).
    stride, dilation : (int, int)
    """
    (oh, ow, kh, kw), (sh, sw), (dh, dw) = patches.shape[-4:], stride, dilation
    total = np.zeros(patches.shape[:-4] + tuple(shape), patches.dtype)
    for p in range(kh):
        for q in range(kw):
            rows = slice(p * dh, p * dh + sh * oh, sh)
            columns = slice(q * dw, q * dw + sw * ow, sw)
            total[..., rows, columns][..., :oh, :ow] += patches[..., p, q]
    return total


@_own("accumulating")
def scatter_add(values, index, size):
    """The adjoint of ``take(x, index, axis=0)``: row j of the result is the sum of the rows of ``values`` with index j.

    Parameters
    ----------
    values : (*index.shape, *rest)
    index : integers
    size : int
        Number of rows of the result (size, *rest).
    """
    rest = values.shape[index.ndim :]
    total = np.zeros((size, *rest), values.dtype)
    np.add.at(total, index.reshape(-1), values.reshape((index.size, *rest)))
    return total


@_own("elementwise")
def erf(x):
    """The error function 2/sqrt(pi) * integral of exp(-t*t) from 0 to x."""
    from scipy.special import erf  # a fifth of a second, which only sources with erf should pay

    return erf(x)


@_own("special")
def solve(a, b):
    """X with A X = B, matrices in the last two axes; NaN where A is singular.

    Parameters
    ----------
    a : (..., n, n)
    b : (..., n, m)

    Returns
    -------
    (..., n, m)
    """
    try:
        return np.linalg.solve(a, b)
    except np.linalg.LinAlgError:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = (np.broadcast_to(x, batch + x.shape[-2:]) for x in (a, b))
        if not batch:
            return np.full(b.shape, np.nan)
        return np.stack([solve(one, other) for one, other in zip(a, b)])


@_own("contraction")
def real_ifft2(x):
    """The real part of the inverse discrete Fourier transform over the last two axes, which is its own adjoint:

        y[s, t] = 1 / (m n)  sum over p, q of  x[p, q] cos(2 pi (p s / m + q t / n))

    Parameters
    ----------
    x : (..., m, n)
        Real.

    Returns
    -------
    (..., m, n)
    """
    return np.fft.ifft2(x).real if x.size else np.zeros(x.shape)


@_own("contraction")
def circular_matmul(a, b):
    """The product of matrices whose elements are vectors around a circle, multiplied by circular convolution:

        c[i, j, s] = sum over k and t of  a[i, k, t] b[k, j, (s - t) mod n]

    as it is where transforms may multiply spectra.

    Parameters
    ----------
    a : (..., i, k, n)
        Real.
    b : (..., k, j, n)

    Returns
    -------
    (..., i, j, n)
    """
    n = a.shape[-1]
    if not n:
        return np.zeros((*np.broadcast_shapes(a.shape[:-3], b.shape[:-3]), a.shape[-3], b.shape[-2], 0))
    spectra = (np.moveaxis(np.fft.rfft(x), -1, -3) for x in (a, b))
    return np.fft.irfft(np.moveaxis(np.matmul(*spectra), -3, -1), n)


@_own("special")
def round_to(x, format):
    """Round to nearest even in ``format``: a step of the definition, for operations that are specified as such steps."""
    return round_to_format(x, as_format(format))


@_own("integer")
def positions(x, axis):
    """The integers 0, 1, ... along ``axis`` of ``x``, one axis: what causal masks and the like compare."""
    return np.arange(x.shape[axis])


@_own("extremal")
def topk(x, k):
    """Indices of the k largest elements along the last axis, largest first; among equals the lower index."""
    return np.argsort(-x, axis=-1, kind="stable")[..., :k]


@_own("special")
def detach(x):
    """The same value, of which no gradient flows back."""
    return x


@_own("special")
def straight_through(value, surrogate):
    """``value`` on the way forward; on the way back, the gradient goes to ``surrogate`` as if it had been that."""
    return value


@_own("special")
def dropout(x, mask, keep):
    """Inverted dropout with its mask given: ``x / keep`` where the boolean mask holds, else zero."""
    return np.where(mask, x / keep, 0.0)
