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

from refpeft.numerics.primitives import dropout
from refpeft.operation import operation
from refpeft.ops._convolution import correlate, pad, to_input, to_kernel, unpad


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
    nonfinite=("x", "bias", "lora_bias"),
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
    h = correlate(pad(z, padding, padding_mode), a, stride, dilation, 1)
    y = correlate(pad(x, padding, padding_mode), weight, stride, dilation, groups)
    y = y + correlate(scaling * h, b, (1, 1), (1, 1), groups)
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
    xp, zp = pad(x, padding, padding_mode), pad(z, padding, padding_mode)
    h, du = correlate(zp, a, stride, dilation, 1), scaling * dy
    dh = to_input(du, b, h, (1, 1), (1, 1), groups)
    dz = unpad(to_input(dh, a, zp, stride, dilation, 1), padding, padding_mode)
    dx = unpad(to_input(dy, weight, xp, stride, dilation, groups), padding, padding_mode)
    dx = dx + (dz if mask is None else dropout(dz, mask, keep))
    dweight = to_kernel(dy, weight, xp, stride, dilation, groups)
    da = to_kernel(dh, a, zp, stride, dilation, 1)
    db = to_kernel(du, b, h, (1, 1), (1, 1), groups)
    return dx, dweight, da, db, np.sum(dy, axis=(0, 2, 3)), np.sum(du, axis=(0, 2, 3))


@conv2d.problems
def early_training(random, arrays, attributes):
    """B just off zero, as after the first steps."""
    return {"b": arrays["b"] * 2.0**-10}


def _by_channel(bias):
    return np.expand_dims(bias, (1, 2))
