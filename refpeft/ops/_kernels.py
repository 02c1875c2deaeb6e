"""Two-dimensional convolutions of methods: what their signatures share, and one path for those that merge before they convolve.

A kernel W (o, c / groups, kh, kw) is o filters, the rows of a matrix (o, i) with i = c / groups kh kw. A method that turns or
stretches rows does the same to filters:

    y = W' * x + bias        W' = merge(W, parameters)

where ``*`` is cross-correlation over zero padding. Backwards, the convolution gives dW' and the merge's own vjp the rest.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

import numpy as np

from refpeft.operation import Operation
from refpeft.ops._arrays import plus
from refpeft.ops._convolution import correlate, pad, to_input, to_kernel, unpad
from refpeft.ops._made import made

EXTENTS = "(h+2*padding[0]-dilation[0]*(kh-1)-1)//stride[0]+1,(w+2*padding[1]-dilation[1]*(kw-1)-1)//stride[1]+1"
SIZES = {"n": (1, 2), "cg": (2, 1, 3), "h": (3, 1, 2, 4), "w": (3, 1, 2, 4), "kh": (2, 1, 3), "kw": (2, 1, 3)}
GEOMETRY = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def geometry(own: str = "") -> str:
    """The constraints of a convolution with zero padding, with the operation's ``own`` among them."""
    return (
        f"groups >= 1, c = cg*groups, o//groups*groups = o, {own + ', ' if own else ''}stride[0] >= 1, stride[1] >= 1, "
        "dilation[0] >= 1, dilation[1] >= 1, padding[0] >= 0, padding[1] >= 0, kh >= 1, kw >= 1, "
        "dilation[0]*(kh-1)+1 <= h+2*padding[0], dilation[1]*(kw-1)+1 <= w+2*padding[1]"
    )


def matrix(kernel):
    """Filters as rows: (o, c, kh, kw) as (o, c kh kw)."""
    return kernel.reshape(kernel.shape[0], int(np.prod(kernel.shape[1:])))


def by_channel(vector):
    """(o,) against images (n, o, h, w)."""
    return np.expand_dims(vector, (1, 2))


def plus_bias(y, bias):
    """Images (n, o, h, w) and a number for each channel, where there is one."""
    return plus(y, None if bias is None else by_channel(bias))


def merged_first(name: str, merge: Operation, parameters: str, where: str, sizes: Mapping) -> Operation:
    """Declare operation ``name``: the convolution with the kernel that ``merge`` makes.

    Parameters
    ----------
    name : str
    merge : Operation
        From ``weight`` (o, i) and the parameters to ``merged`` (o, i).
    parameters, where : str
        The parameters' signature and constraints, in which ``i`` stands for c / groups kh kw.
    sizes : mapping
        As for `operation`, beside those of images and kernels.
    """
    parameters, where = (re.sub(r"\bi\b", "(cg*kh*kw)", text) for text in (parameters, where))

    def forward(x, weight, *rest, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, **attributes):
        *parameters, bias = rest
        kernel = merge.forward(matrix(weight), *parameters, **attributes).reshape(weight.shape)
        return plus_bias(correlate(pad(x, padding, "zeros"), kernel, stride, dilation, groups), bias)

    def backward(dy, x, weight, *rest, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, **attributes):
        *parameters, _ = rest
        kernel = merge.forward(matrix(weight), *parameters, **attributes).reshape(weight.shape)
        x = pad(x, padding, "zeros")
        dx = unpad(to_input(dy, kernel, x, stride, dilation, groups), padding, "zeros")
        dmerged = matrix(to_kernel(dy, kernel, x, stride, dilation, groups))
        dweight, *gradients = merge.backward(dmerged, matrix(weight), *parameters, **attributes)
        return dx, dweight.reshape(weight.shape), *gradients, np.sum(dy, axis=(0, 2, 3))

    text = f"x[n,c,h,w] weight[o,cg,kh,kw] {parameters} bias?[o] -> y[n,o,{EXTENTS}] where {geometry(where)}"
    said = f"y = W' * x + bias, where ``*`` is cross-correlation and W' is\n\n{inspect.cleandoc(merge.__doc__ or '')}"
    sizes = SIZES | dict(sizes)
    return made(name, text, said, merge.source, forward, backward, GEOMETRY, sizes=sizes, nonfinite=("x", "bias"))
