"""(IA)^3 of a two-dimensional convolution (Liu et al. 2022, arXiv:2205.05638, has linear layers only): l scales channels.

    output    y = l o (W * x + b)        l (o)
    input     y = W * (l o x) + b        l (c)

Merged, a filter has l of its output, or each of its channels l of the input channel that it meets: with groups, filters of
group k meet channels k c / groups and on.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._convolution import correlate, pad, to_input, to_kernel, unpad
from refpeft.ops._kernels import EXTENTS, SIZES, by_channel, geometry, plus_bias
from refpeft.ops.ia3 import Side


@operation(
    "ia3.conv2d",
    "x[n,c,h,w] weight[o,cg,kh,kw] scale[o*is(side,output)+c*is(side,input)] bias?[o] -> "
    f"y[n,o,{EXTENTS}] where {geometry()}",
    sizes=SIZES,
    nonfinite=("x", "scale", "bias"),
)
def conv2d(
    x,
    weight,
    scale,
    bias=None,
    *,
    side: Side = "output",
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
):
    """y = l o (W * x + bias), or W * (l o x) + bias, where ``*`` is cross-correlation.

    Parameters
    ----------
    x : (n, c, h, w)
    weight : (o, c / groups, kh, kw)
        Frozen base kernel W.
    scale : (o,) or (c,)
        l.
    bias : (o,), optional
        The base layer's bias; scaled with the outputs that it is part of.
    side : "output" or "input"
        What l multiplies.
    stride, padding, dilation : (int, int)
        Of rows and of columns; padding with zeros.
    groups : int

    Returns
    -------
    y : (n, o, oh, ow), where ``oh = (h + 2 padding - dilation (kh - 1) - 1) // stride + 1``
    """
    scale, how = by_channel(scale), (stride, dilation, groups)
    if side == "output":
        return scale * plus_bias(correlate(pad(x, padding, "zeros"), weight, *how), bias)
    return plus_bias(correlate(pad(scale * x, padding, "zeros"), weight, *how), bias)


@conv2d.vjp
def _(
    dy,
    x,
    weight,
    scale,
    bias=None,
    *,
    side="output",
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
):
    """output: with v = W * x + bias, dl is the sum of dy o v over images and places, and dv = l o dy enters the convolution.
    input: with z = l o x, dz = Wᵀ * dy comes out of it, dl is the sum of x o dz, and dx = l o dz.
    """
    scale, how, places = by_channel(scale), (stride, dilation, groups), (0, 2, 3)
    if side == "output":
        z = pad(x, padding, "zeros")
        v, dv = plus_bias(correlate(z, weight, *how), bias), scale * dy
        dx = unpad(to_input(dv, weight, z, *how), padding, "zeros")
        return dx, to_kernel(dv, weight, z, *how), np.sum(dy * v, axis=places), np.sum(dv, axis=places)
    z = pad(scale * x, padding, "zeros")
    dz = unpad(to_input(dy, weight, z, *how), padding, "zeros")
    return scale * dz, to_kernel(dy, weight, z, *how), np.sum(x * dz, axis=places), np.sum(dy, axis=places)


@operation(
    "ia3.conv2d_merge",
    "weight[o,cg,kh,kw] scale[o*is(side,output)+cg*groups*is(side,input)] -> merged[o,cg,kh,kw] where "
    "groups >= 1, o//groups*groups = o",
    sizes=SIZES | {"groups": (1, 2, 3)},
)
def merge(weight, scale, *, side: Side = "output", groups: int = 1):
    """W with l on its filters, or on the channels that they meet.

    Parameters
    ----------
    weight : (o, c / groups, kh, kw)
    scale : (o,) or (c,)
    side : "output" or "input"
    groups : int

    Returns
    -------
    merged : (o, c / groups, kh, kw)
    """
    return weight * _across(scale, weight, side, groups)


@merge.vjp
def _(dmerged, weight, scale, *, side="output", groups=1):
    """dW = l o dmerged, and dl is the sum of W o dmerged over all that an element of l multiplies."""
    product = weight * dmerged
    if side == "output":
        dscale = np.sum(product, axis=(1, 2, 3))
    else:
        o, cg, kh, kw = weight.shape
        dscale = np.sum(product.reshape(groups, o // groups, cg, kh * kw), axis=(1, 3)).reshape(groups * cg)
    return dmerged * _across(scale, weight, side, groups), dscale


def _across(scale, weight, side: Side, groups: int):
    """l against a kernel: (o, 1, 1, 1), or (o, c / groups, 1, 1)."""
    o, cg = weight.shape[:2]
    if side == "output":
        return scale.reshape(o, 1, 1, 1)
    of_groups = np.broadcast_to(scale.reshape(groups, 1, cg), (groups, o // groups, cg))
    return of_groups.reshape(o, cg, 1, 1)
