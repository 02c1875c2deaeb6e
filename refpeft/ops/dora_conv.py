"""DoRA of a two-dimensional convolution (Liu et al. 2024, arXiv:2402.09353, has linear layers only).

A filter of the kernel W (o, c / groups, kh, kw) is what a row is in a linear layer: it has a length and a direction. With
kernels as matrices (o, i), i = c / groups kh kw, all is as in `refpeft.ops.dora`,

    V = W + s B A        g = m / ||V||        W' = g V        ||V||_j over all of filter j

and `dora.merge` merges. A is a convolution of the base layer's geometry, applied to each group's channels; B is a 1 x 1
convolution with the base layer's groups.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import dropout
from refpeft.operation import operation
from refpeft.ops._convolution import correlate, pad, to_input, to_kernel, unpad
from refpeft.ops._kernels import EXTENTS, SIZES, by_channel, geometry, matrix, plus_bias
from refpeft.ops.dora import Norm, directed, rooted, through_norm

_ONE = (1, 1)


@operation(
    "dora.conv2d",
    "x[n,c,h,w] weight[o,cg,kh,kw] a[r,cg,kh,kw] b[o,r,1,1] magnitude[o] bias?[o] mask?: bool[n,c,h,w] -> "
    f"y[n,o,{EXTENTS}] where keep <= 1, keep > 0, {geometry()}",
    sizes=SIZES | {"kh": (2, 3), "r": (2, 1, 3)},  # two numbers in a filter at least, as in dora.linear
    nonfinite=("x", "bias"),
)
def conv2d(
    x,
    weight,
    a,
    b,
    magnitude,
    bias=None,
    mask=None,
    *,
    scaling: float,
    keep: float = 1.0,
    norm: Norm = "detached",
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
):
    """y = W * x + (g - 1) (W * z) + g u + bias with z = drop(x), u = B * (s A * z); without dropout, y = g (V * x) + bias.

    Parameters
    ----------
    x : (n, c, h, w)
    weight : (o, c / groups, kh, kw)
        Frozen base kernel W.
    a : (r, c / groups, kh, kw)
        Down-projection A: stride, padding and dilation of the base layer, the same for each group.
    b : (o, r, 1, 1)
        Up-projection B.
    magnitude : (o,)
        m, the length of each filter of W'.
    bias : (o,), optional
        The base layer's bias, which m leaves alone.
    mask : (n, c, h, w) bool, optional
        Dropout on the adapter's way: which elements are kept.
    scaling : float
        s; alpha / r.
    keep : float
        Probability of keeping an element, above 0; used with ``mask`` only.
    norm : "detached" or "full"
        Whether the norm is a constant on the way back.
    stride, padding, dilation : (int, int)
        Of rows and of columns; padding with zeros.
    groups : int

    Returns
    -------
    y : (n, o, oh, ow), where ``oh = (h + 2 padding - dilation (kh - 1) - 1) // stride + 1``
    """
    z = pad(x if mask is None else dropout(x, mask, keep), padding, "zeros")
    _, inverse = directed(matrix(weight), matrix(a), matrix(b), scaling, norm)
    g, h = by_channel(magnitude * inverse), correlate(z, _for_each(a, groups), stride, dilation, groups)
    u = correlate(scaling * h, b, _ONE, _ONE, groups)
    y = correlate(pad(x, padding, "zeros"), weight, stride, dilation, groups)
    return plus_bias(y + (g - 1) * correlate(z, weight, stride, dilation, groups) + g * u, bias)


@conv2d.vjp
def _(
    dy,
    x,
    weight,
    a,
    b,
    magnitude,
    bias=None,
    mask=None,
    *,
    scaling,
    keep=1.0,
    norm="detached",
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
):
    """As in the linear layer, each product a convolution: with h = A * z, dq = (g - 1) dy, du = s g dy and dh = Bᵀ du,
    dx = Wᵀ dy + drop(Wᵀ dq + Aᵀ dh); dW, dA and dB correlate dy and dq, dh, du with what went in, dA summed over the groups;
    dg = sum dy (W * z + s B * h), dm = dg / ||V||; the full norm adds its dV to those of W, A and B.
    """
    z = pad(x if mask is None else dropout(x, mask, keep), padding, "zeros")
    x = pad(x, padding, "zeros")
    v, inverse = directed(matrix(weight), matrix(a), matrix(b), scaling, norm)
    how, each, g = (stride, dilation, groups), _for_each(a, groups), magnitude * inverse
    h, dq, du = correlate(z, each, *how), (by_channel(g) - 1) * dy, scaling * (by_channel(g) * dy)
    dh = to_input(du, b, h, _ONE, _ONE, groups)
    dz = unpad(to_input(dq, weight, z, *how) + to_input(dh, each, z, *how), padding, "zeros")
    dx = unpad(to_input(dy, weight, x, *how), padding, "zeros") + (dz if mask is None else dropout(dz, mask, keep))
    p = correlate(z, weight, *how) + correlate(scaling * h, b, _ONE, _ONE, groups)
    dg = np.sum(dy * p, axis=(0, 2, 3))
    dweight = to_kernel(dy, weight, x, *how) + to_kernel(dq, weight, z, *how)
    da = np.sum(to_kernel(dh, each, z, *how).reshape(groups, *a.shape), axis=0)
    db = to_kernel(du, b, h, _ONE, _ONE, groups)
    if norm == "full":
        dv = through_norm(dg, v, g, inverse)
        dweight = dweight + dv.reshape(weight.shape)
        da = da + (matrix(b).T @ (scaling * dv)).reshape(a.shape)
        db = db + ((scaling * dv) @ matrix(a).T).reshape(b.shape)
    return dx, dweight, da, db, dg * inverse, np.sum(dy, axis=(0, 2, 3))


@conv2d.anchors
def _(random, arrays, attributes):
    """Filters of V whose norm is a power of two, or zero."""
    w, a, b = (arrays[n] for n in ("weight", "a", "b"))
    v = rooted(random, matrix(w).shape)
    return {"weight": (v - attributes["scaling"] * (matrix(b) @ matrix(a))).reshape(w.shape)}


def _for_each(a, groups: int):
    """A once for each group: (r, ...) as (groups r, ...)."""
    return np.concatenate([a] * groups, axis=0)
