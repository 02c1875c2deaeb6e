"""LoRA of a two-dimensional convolution, as peft has it (Hu et al. 2021, arXiv:2106.09685, has linear layers only).

A is a convolution with the base layer's kernel size, stride, padding and dilation from c channels to r, never grouped;
B is a 1 x 1 convolution with the base layer's groups. Without groups the two are one convolution with the kernel

    delta[o,c,p,q] = s sum_r B[o,r] A[r,c,p,q],

so that `lora.merge` on kernels reshaped to (o, c kh kw) merges them. With groups, A sees channels that the base kernel
does not, and there is nothing to merge into.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.primitives import dropout, take, windows
from refpeft.operation import operation

_NUMPY_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@operation(
    "lora.conv2d",
    "x[n,c,h,w] weight[o,cg,kh,kw] a[r,c,kh,kw] b[o,rg,1,1] bias?[o] lora_bias?[o] mask?: bool[n,c,h,w] -> "
    "y[n,o,(h+2*padding[0]-dilation[0]*(kh-1)-1)//stride[0]+1,(w+2*padding[1]-dilation[1]*(kw-1)-1)//stride[1]+1] "
    "where keep <= 1, keep > 0, groups >= 1, c = cg*groups, r = rg*groups, o = og*groups, o//groups*groups = o, "
    "stride[0] >= 1, stride[1] >= 1, dilation[0] >= 1, dilation[1] >= 1, padding[0] >= 0, padding[1] >= 0, "
    "padding[0]*is(padding_mode,reflect) < h, padding[1]*is(padding_mode,reflect) < w, "
    "padding[0]*is(padding_mode,circular) <= h, padding[1]*is(padding_mode,circular) <= w, "
    "kh >= 1, kw >= 1, dilation[0]*(kh-1)+1 <= h+2*padding[0], dilation[1]*(kw-1)+1 <= w+2*padding[1]",
    sizes={
        "n": (1, 2, 3),
        "h": (3, 1, 2, 4, 5, 7),
        "w": (3, 1, 2, 4, 5, 6),
        "cg": (1, 2, 3),
        "kh": (2, 1, 3),
        "kw": (2, 1, 3),
        "rg": (1, 2, 3),
        "og": (1, 2, 3),
    },
)
def conv2d(
    x,
    weight,
    a,
    b,
    bias=None,
    lora_bias=None,
    mask=None,
    *,
    scaling: float,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    keep: float = 1.0,
):
    """y = W * x + bias + s (B * (A * drop(x)) + lora_bias), where ``*`` is cross-correlation.

    Parameters
    ----------
    x : (n, c, h, w)
    weight : (o, c / groups, kh, kw)
        Frozen base kernel W.
    a : (r, c, kh, kw)
        Down-projection A: stride, padding, dilation and padding mode of the base layer, no groups.
    b : (o, r / groups, 1, 1)
        Up-projection B: groups of the base layer.
    bias : (o,), optional
        The base layer's bias; not scaled.
    lora_bias : (o,), optional
        A bias of the up-projection; scaled by s.
    mask : (n, c, h, w) bool, optional
        Dropout before A: which elements are kept.
    scaling : float
        s; see `lora.scaling`.
    stride, padding, dilation : (int, int)
        Of rows and of columns; padding on both sides alike.
    groups : int
    padding_mode : "zeros", "reflect", "replicate" or "circular"
        What stands outside x.
    keep : float
        Probability of keeping an element, above 0; used with ``mask`` only.

    Returns
    -------
    y : (n, o, oh, ow), where ``oh = (h + 2 padding - dilation (kh - 1) - 1) // stride + 1``
    """
    z = x if mask is None else dropout(x, mask, keep)
    h = _correlate(_pad(z, padding, padding_mode), a, stride, dilation, 1)
    y = _correlate(_pad(x, padding, padding_mode), weight, stride, dilation, groups)
    y = y + _correlate(scaling * h, b, (1, 1), (1, 1), groups)
    y = y if lora_bias is None else y + _by_channel(scaling * lora_bias)
    return y if bias is None else y + _by_channel(bias)


@conv2d.vjp
def _(
    dy,
    x,
    weight,
    a,
    b,
    bias=None,
    lora_bias=None,
    mask=None,
    *,
    scaling,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
    keep=1.0,
):
    """With z = drop(x), h = A * z and du = s dy, each adjoint as in the linear layer.

    dh = Bᵀ du, dz = Aᵀ dh, dx = Wᵀ dy + drop(dz); dW, dA and dB correlate the cotangents dy, dh and du with what
    went in.
    """
    z = x if mask is None else dropout(x, mask, keep)
    xp, zp = _pad(x, padding, padding_mode), _pad(z, padding, padding_mode)
    h, du = _correlate(zp, a, stride, dilation, 1), scaling * dy
    dh = _to_input(du, b, h, (1, 1), (1, 1), groups)
    dz = _unpad(_to_input(dh, a, zp, stride, dilation, 1), padding, padding_mode)
    dx = _unpad(_to_input(dy, weight, xp, stride, dilation, groups), padding, padding_mode)
    dx = dx + (dz if mask is None else dropout(dz, mask, keep))
    dweight = _to_kernel(dy, weight, xp, stride, dilation, groups)
    da = _to_kernel(dh, a, zp, stride, dilation, 1)
    db = _to_kernel(du, b, h, (1, 1), (1, 1), groups)
    return dx, dweight, da, db, np.sum(dy, axis=(0, 2, 3)), np.sum(du, axis=(0, 2, 3))


@conv2d.problems
def early_training(random, arrays, attributes):
    """B just off zero, as after the first steps."""
    return {"b": arrays["b"] * 2.0**-10}


def _correlate(x, kernel, stride, dilation, groups):
    """Cross-correlation of the padded x (n, c, h, w) with a kernel (o, c / groups, kh, kw): a contraction per group.

    y[n,o,i,j] = sum_{c,p,q} kernel[o,c,p,q] x[n,c,s i + d p,s j + d q]
    """
    o, cg, kh, kw = kernel.shape
    patches, (n, oh, ow) = _patches(x, kernel, stride, dilation, groups)
    y = patches @ np.transpose(kernel.reshape(groups, o // groups, cg * kh * kw), (0, 2, 1))
    y = np.transpose(y.reshape(groups, n, oh, ow, o // groups), (1, 0, 4, 2, 3))
    return y.reshape(n, o, oh, ow)


def _to_kernel(dy, kernel, x, stride, dilation, groups):
    """The adjoint of `_correlate` in its kernel.

    dkernel[o,c,p,q] = sum_{n,i,j} dy[n,o,i,j] x[n,c,s i + d p,s j + d q]
    """
    o = kernel.shape[0]
    patches, (n, oh, ow) = _patches(x, kernel, stride, dilation, groups)
    dy = np.transpose(dy.reshape(n, groups, o // groups, oh, ow), (1, 2, 0, 3, 4))
    return (dy.reshape(groups, o // groups, n * oh * ow) @ patches).reshape(kernel.shape)


def _to_input(dy, kernel, x, stride, dilation, groups):
    """The adjoint of `_correlate` in x: the cotangents, set apart by the stride, under the kernel turned over.

    dx[n,c,y,z] = sum_{o,p,q} kernel[o,c,p,q] dy[n,o,i,j] over all i, j with s i + d p = y and s j + d q = z

    It is one contraction over o, p and q, which admits any order of adding, that of column images among them.
    """
    (o, cg, kh, kw), (height, width) = kernel.shape, x.shape[2:]
    n, _, oh, ow = dy.shape
    apart = np.pad(dy.reshape(n, o, oh, 1, ow, 1), [(0, 0)] * 3 + [(0, stride[0] - 1), (0, 0), (0, stride[1] - 1)])
    apart = apart.reshape(n, o, oh * stride[0], ow * stride[1])[:, :, :height, :width]
    reach = dilation[0] * (kh - 1), dilation[1] * (kw - 1)
    rest = height - apart.shape[2], width - apart.shape[3]
    apart = np.pad(apart, [(0, 0), (0, 0), (reach[0], rest[0]), (reach[1], rest[1])])
    turned = np.transpose(kernel.reshape(groups, o // groups, cg, kh, kw), (0, 2, 1, 3, 4))
    turned = np.flip(turned.reshape(groups * cg, o // groups, kh, kw), axis=(2, 3))
    return _correlate(apart, turned, (1, 1), dilation, groups)


def _patches(x, kernel, stride, dilation, groups):
    """What each output position sees, (groups, n oh ow, c / groups kh kw), and (n, oh, ow)."""
    cg, kh, kw = kernel.shape[1:]
    seen = windows(x, (kh, kw), stride, dilation)
    n, _, oh, ow = seen.shape[:4]
    seen = np.transpose(seen.reshape(n, groups, cg, oh, ow, kh, kw), (1, 0, 3, 4, 2, 5, 6))
    return seen.reshape(groups, n * oh * ow, cg * kh * kw), (n, oh, ow)


def _pad(x, padding, mode):
    """``x`` continued by ``padding`` rows and columns on each side."""
    return np.pad(x, [(0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2], mode=_NUMPY_MODES[mode])


def _unpad(dx, padding, mode):
    """The adjoint of `_pad`: what fell on a copy goes back to its original.

    The copies of an element are added one round after another, as a chain: frameworks add them in storage precision.
    """
    n, c, height, width = dx.shape
    h, w = height - 2 * padding[0], width - 2 * padding[1]
    if mode == "zeros" or padding == (0, 0):
        return dx[:, :, padding[0] : padding[0] + h, padding[1] : padding[1] + w]
    positions = np.arange(h * w).reshape(h, w)
    origin = np.pad(positions, [(padding[0],) * 2, (padding[1],) * 2], mode=_NUMPY_MODES[mode]).reshape(-1)
    flat = np.pad(dx.reshape(n, c, height * width), [(0, 0), (0, 0), (0, 1)])
    first, *others = (take(flat, round_, axis=2) for round_ in _rounds(origin, h * w))
    total = first
    for copies in others:
        total = total + copies
    return total.reshape(n, c, h, w)


def _rounds(origin, size):
    """For each of ``size`` elements where its first copy stands, then its second, ...; ``origin.size`` for none."""
    order = np.argsort(origin, kind="stable")
    first = np.searchsorted(origin[order], np.arange(size + 1))
    for k in range(int(np.max(np.diff(first)))):
        at = first[:-1] + k
        yield np.where(at < first[1:], order[np.minimum(at, origin.size - 1)], origin.size)


def _by_channel(bias):
    return np.expand_dims(bias, (1, 2))
