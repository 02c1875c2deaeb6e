"""C3A through the frequency domain, as its authors and peft compute it: the formulas of `refpeft.ops.c3a` under a wider budget.

A block w applied to a piece x of the input is a circular correlation, the convolution with w backwards, w~[m] = w[-m mod b]:

    y_p = sum over q of  w~[p, q] * x_q
    dx_q = sum over p of  w[p, q] * dy_p        dw[p, q] = sum over the batch of  dy~_p * x_q

each a product of matrices whose elements go around a circle. A transform spreads its error over a block, so that the budget is
normwise there: gamma times |w[p, q]| |x_q| in the 2-norm, the same for all elements of a block.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import circular_matmul, positions, take
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows

_KERNEL, _WHERE = "kernel[p,q,b]", "where o = p*b, i = q*b"
_SIZES = {"b": (4, 1, 2, 3, 5, 8), "p": (2, 1, 3), "q": (2, 1, 3)}


@operation(
    "c3a.linear_fft",
    f"x[*n,i] weight[o,i] {_KERNEL} bias?[o] -> y[*n,o] {_WHERE}",
    sizes=_SIZES,
    nonfinite=("weight", "bias"),
)
def linear(x, weight, kernel, bias=None, *, normalised: bool = False):
    """y = x Wᵀ + bias + x deltaᵀ, the last by circular correlation of each block's kernel with each piece of x.

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    kernel : (o / b, i / b, b)
        w.
    bias : (o,), optional
        The base layer's bias.
    normalised : bool
        Divide by i, as the authors' code and peft do.

    Returns
    -------
    y : (*n, o)
    """
    u = circular_matmul(_pieces(x, kernel.shape[2]), np.transpose(_backwards(kernel), (1, 0, 2)))
    u = _normalised(u, kernel, normalised).reshape(*x.shape[:-1], weight.shape[0])
    return plus(x @ weight.T + u, bias)


@linear.vjp
def _(dy, x, weight, kernel, bias=None, *, normalised=False):
    """With du = dy, divided by i where normalised: dx_q = dy W + sum of w[p, q] * du_p, dw[p, q] = sum of du~_p * x_q."""
    du = _normalised(_pieces(dy, kernel.shape[2]), kernel, normalised)
    dx = dy @ weight + circular_matmul(du, kernel).reshape(x.shape)
    dkernel = circular_matmul(np.transpose(_backwards(du), (1, 0, 2)), _pieces(x, kernel.shape[2]))
    return dx, rows(dy).T @ rows(x), dkernel, rows(dy).sum(axis=0)


@operation("c3a.merge_fft", f"weight[o,i] {_KERNEL} -> merged[o,i] {_WHERE}", sizes=_SIZES, nonfinite=("weight",))
def merge(weight, kernel, *, normalised: bool = False):
    """merged = W + delta, each column of a block by correlation with a unit vector.

    Parameters
    ----------
    weight : (o, i)
        Frozen base weight W.
    kernel : (o / b, i / b, b)
        w.
    normalised : bool
        Divide delta by i.

    Returns
    -------
    merged : (o, i)
    """
    p, q, b = kernel.shape
    columns = circular_matmul(_backwards(kernel).reshape(p * q, 1, b), np.expand_dims(_units(kernel), 0))
    delta = np.transpose(columns.reshape(p, q, b, b), (0, 3, 1, 2)).reshape(p * b, q * b)
    return weight + _normalised(delta, kernel, normalised)


@merge.vjp
def _(dmerged, weight, kernel, *, normalised=False):
    """Column t of a block is w~ * e_t, so dw[p, q] = sum over t of  column~ * e_t."""
    p, q, b = kernel.shape
    columns = np.transpose(_normalised(dmerged, kernel, normalised).reshape(p, b, q, b), (0, 2, 3, 1))
    turned = _backwards(columns.reshape(p * q, b, b))
    return dmerged, circular_matmul(turned.reshape(p * q, 1, b, b), np.expand_dims(_units(kernel), 1)).reshape(p, q, b)


def _pieces(x, b: int):
    """(*n, k b) as (N, k, b)."""
    x = rows(x)
    return x.reshape(x.shape[0], x.shape[1] // b, b)


def _backwards(x):
    """x[-m mod b] along the last axis."""
    return take(x, np.remainder(-positions(x, x.ndim - 1), x.shape[-1]), axis=x.ndim - 1)


def _units(kernel):
    """The unit vectors of b elements."""
    place = positions(kernel, 2)
    return np.where(np.expand_dims(place, 0) == np.expand_dims(place, 1), 1.0, 0.0)


def _normalised(u, kernel, normalised: bool):
    i = kernel.shape[1] * kernel.shape[2]
    return u / i if normalised and i else u


def _few_or_zero(random, arrays, attributes):
    """Transforms of 1, 2 and 4 elements have exact roots of unity; of others only zeros are exact."""
    if arrays["kernel"].shape[2] in (1, 2, 4):
        return {}
    return {n: arrays[n] * 0 for n in ("kernel", "dmerged", "x") if n in arrays and (n != "x" or "dy" in arrays)}


for _operation in (linear, merge):
    _operation.anchors(_few_or_zero)
