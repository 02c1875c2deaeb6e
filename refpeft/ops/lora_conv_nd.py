"""LoRA of convolutions in one and in three dimensions, as peft has them, by way of `lora_conv`'s two.

A sequence is an image of one row. A volume is an image for each place of the kernel along the depth: what a kernel of depth kd
sees there are kd slices of c channels, which is an image of c kd channels. So both are `lora.conv2d` of moved elements, zeros
outside.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import scatter_add, take
from refpeft.operation import operation
from refpeft.ops.lora_conv import conv2d

_WHERE = "groups >= 1, c = cg*groups, r = rg*groups, o = og*groups, o//groups*groups = o, kw >= 1, "
_FEW = {"n": (1, 2), "cg": (1, 2, 3), "rg": (1, 2, 3), "og": (1, 2, 3), "kw": (2, 1, 3)}


@operation(
    "lora.conv1d",
    "x[n,c,w] weight[o,cg,kw] a[r,c,kw] b[o,rg,1] bias?[o] -> y[n,o,(w+2*padding-dilation*(kw-1)-1)//stride+1] where "
    f"{_WHERE}stride >= 1, dilation >= 1, padding >= 0, dilation*(kw-1)+1 <= w+2*padding",
    sizes=_FEW | {"w": (3, 1, 2, 5, 7, 8), "padding": (0, 1, 2), "stride": (1, 2, 3), "dilation": (1, 2)},
    nonfinite=("x", "bias"),
)
def conv1d(
    x, weight, a, b, bias=None, *, scaling: float, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
):
    """y = W * x + bias + s B * (A * x), where ``*`` is cross-correlation of sequences.

    Parameters
    ----------
    x : (n, c, w)
    weight : (o, c / groups, kw)
        Frozen base kernel W.
    a : (r, c, kw)
        Stride, padding and dilation of the base layer, no groups.
    b : (o, r / groups, 1)
        Groups of the base layer.
    bias : (o,), optional
        The base layer's bias.
    scaling : float
        s; see `lora.scaling`.
    stride, padding, dilation, groups : int

    Returns
    -------
    y : (n, o, ow), where ``ow = (w + 2 padding - dilation (kw - 1) - 1) // stride + 1``
    """
    geometry = _of_a_row(stride, padding, dilation, groups)
    return conv2d.forward(*map(_row, (x, weight, a, b)), bias, scaling=scaling, **geometry)[:, :, 0]


@conv1d.vjp
def _(dy, x, weight, a, b, bias=None, *, scaling, stride=1, padding=0, dilation=1, groups=1):
    """Those of the image of one row."""
    geometry = _of_a_row(stride, padding, dilation, groups)
    *gradients, dbias, _ = conv2d.backward(_row(dy), *map(_row, (x, weight, a, b)), bias, scaling=scaling, **geometry)
    return *(gradient[:, :, 0] for gradient in gradients), dbias


def _row(x):
    """(p, q, w) as (p, q, 1, w)."""
    return np.expand_dims(x, 2)


def _of_a_row(stride, padding, dilation, groups):
    return {"stride": (1, stride), "padding": (0, padding), "dilation": (1, dilation), "groups": groups}


@operation(
    "lora.conv3d",
    "x[n,c,d,h,w] weight[o,cg,kd,kh,kw] a[r,c,kd,kh,kw] b[o,rg,1,1,1] bias?[o] -> "
    "y[n,o,(d+2*padding[0]-dilation[0]*(kd-1)-1)//stride[0]+1,(h+2*padding[1]-dilation[1]*(kh-1)-1)//stride[1]+1,"
    "(w+2*padding[2]-dilation[2]*(kw-1)-1)//stride[2]+1] where "
    f"{_WHERE}kd >= 1, kh >= 1, stride[0] >= 1, stride[1] >= 1, stride[2] >= 1, dilation[0] >= 1, dilation[1] >= 1, "
    "dilation[2] >= 1, padding[0] >= 0, padding[1] >= 0, padding[2] >= 0, dilation[0]*(kd-1)+1 <= d+2*padding[0], "
    "dilation[1]*(kh-1)+1 <= h+2*padding[1], dilation[2]*(kw-1)+1 <= w+2*padding[2]",
    sizes=_FEW | dict.fromkeys("dhw", (3, 1, 2, 4)) | {"kd": (2, 1, 3), "kh": (2, 1), "kw": (2, 1)},
    nonfinite=("x", "bias"),
)
def conv3d(
    x,
    weight,
    a,
    b,
    bias=None,
    *,
    scaling: float,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
    dilation: tuple[int, int, int] = (1, 1, 1),
    groups: int = 1,
):
    """y = W * x + bias + s B * (A * x), where ``*`` is cross-correlation of volumes.

    Parameters
    ----------
    x : (n, c, d, h, w)
    weight : (o, c / groups, kd, kh, kw)
        Frozen base kernel W.
    a : (r, c, kd, kh, kw)
        Stride, padding and dilation of the base layer, no groups.
    b : (o, r / groups, 1, 1, 1)
        Groups of the base layer.
    bias : (o,), optional
        The base layer's bias.
    scaling : float
        s; see `lora.scaling`.
    stride, padding, dilation : (int, int, int)
        Of depth, rows and columns.
    groups : int

    Returns
    -------
    y : (n, o, od, oh, ow), each as in `conv1d`.
    """
    seen, geometry = _slices(x, weight, stride, padding, dilation), _of_a_slice(stride, padding, dilation, groups)
    images = conv2d.forward(_images(x, seen), *map(_flat, (weight, a, b)), bias, scaling=scaling, **geometry)
    return _volume(images, x.shape[0])


@conv3d.vjp
def _(dy, x, weight, a, b, bias=None, *, scaling, stride=(1, 1, 1), padding=(0, 0, 0), dilation=(1, 1, 1), groups=1):
    """Those of the images; a slice of x gets what all the images that hold it get."""
    seen, geometry = _slices(x, weight, stride, padding, dilation), _of_a_slice(stride, padding, dilation, groups)
    n, o, od, oh, ow = dy.shape
    turned = np.transpose(dy, (0, 2, 1, 3, 4)).reshape(n * od, o, oh, ow)
    dimages, dweight, da, db, dbias, _ = conv2d.backward(
        turned, _images(x, seen), *map(_flat, (weight, a, b)), bias, scaling=scaling, **geometry
    )
    gradients = (gradient.reshape(of.shape) for gradient, of in ((dweight, weight), (da, a), (db, b)))
    return _from_images(dimages, x, seen), *gradients, dbias


def _slices(x, weight, stride, padding, dilation) -> np.ndarray:
    """Which slice of x each place along the kernel's depth sees at each depth of y, (od, kd); x's own depth for none."""
    depth, kd = x.shape[2], weight.shape[2]
    od = (depth + 2 * padding[0] - dilation[0] * (kd - 1) - 1) // stride[0] + 1
    at = stride[0] * np.arange(od)[:, None] + dilation[0] * np.arange(kd) - padding[0]
    return np.where((at >= 0) & (at < depth), at, depth)


def _images(x, seen):
    """(n, c, d, h, w) as (n od, c kd, h, w)."""
    n, c, _, h, w = x.shape
    od, kd = seen.shape
    around = np.pad(x, [(0, 0), (0, 0), (0, 1), (0, 0), (0, 0)])
    return np.transpose(take(around, seen, axis=2), (0, 2, 1, 3, 4, 5)).reshape(n * od, c * kd, h, w)


def _from_images(dimages, x, seen):
    """The adjoint of `_images`."""
    n, c, depth, h, w = x.shape
    od, kd = seen.shape
    apart = np.transpose(dimages.reshape(n, od, c, kd, h, w), (1, 3, 0, 2, 4, 5))
    return np.transpose(scatter_add(apart, seen, depth + 1)[:depth], (1, 2, 0, 3, 4))


def _flat(kernel):
    """(p, q, kd, kh, kw) as (p, q kd, kh, kw)."""
    p, q, kd, kh, kw = kernel.shape
    return kernel.reshape(p, q * kd, kh, kw)


def _volume(images, n):
    """(n od, o, oh, ow) as (n, o, od, oh, ow)."""
    count, o, oh, ow = images.shape
    return np.transpose(images.reshape(n, count // n if n else 0, o, oh, ow), (0, 2, 1, 3, 4))


def _of_a_slice(stride, padding, dilation, groups):
    return {"stride": stride[1:], "padding": padding[1:], "dilation": dilation[1:], "groups": groups}


@conv1d.problems
@conv3d.problems
def early_training(random, arrays, attributes):
    """B just off zero, as after the first steps."""
    return {"b": arrays["b"] * 2.0**-10}
