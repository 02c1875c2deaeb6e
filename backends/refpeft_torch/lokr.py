"""LoKr in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.convolution import convolve, tucker
from refpeft_torch.precision import widened


def _kron(a, b):
    """The Kronecker product, b (r, s, *k) a kernel; ``torch.kron`` refuses some strides (docs/findings/torch-kron.md)."""
    product = a.reshape(a.shape[0], 1, a.shape[1], 1, *[1] * (b.ndim - 2)) * b.unsqueeze(1).unsqueeze(0)
    return product.reshape(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1], *b.shape[2:])


def _adapted(x, weight, bias, delta):
    return F.linear(x, weight, bias) + F.linear(x, delta)


@implements("lokr.linear")
def linear(x, weight, w1, w2_a, w2_b, bias=None, *, scaling):
    """A dense and a low-rank factor."""
    return _adapted(x, weight, bias, _kron(w1, w2_a @ w2_b) * scaling)


@implements("lokr.merge")
def merge(weight, w1, w2_a, w2_b, *, scaling):
    """The weight with the update in it."""
    return weight + _kron(w1, w2_a @ w2_b) * scaling


@implements("lokr.conv2d")
def conv2d(x, weight, w1, w2_a, w2_b, bias=None, *, scaling, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """Two convolutions."""
    dtype = x.dtype
    x, weight, w1, w2_a, w2_b, bias = widened(x, weight, w1, w2_a, w2_b, bias)
    kernel = (_kron(w1, w2_a @ w2_b) * scaling).reshape(weight.shape)
    how = (stride, padding, dilation, groups)
    return (convolve(x, weight, bias, *how) + convolve(x, kernel, None, *how)).to(dtype)


@implements("lokr_dense.linear")
def dense_linear(x, weight, w1, w2, bias=None, *, scaling):
    """Two dense factors."""
    return _adapted(x, weight, bias, _kron(w1, w2) * scaling)


@implements("lokr_dense.merge")
def dense_merge(weight, w1, w2, *, scaling):
    """The weight with the update in it."""
    return weight + _kron(w1, w2) * scaling


@implements("lokr_both.linear")
def both_linear(x, weight, w1_a, w1_b, w2_a, w2_b, bias=None, *, scaling):
    """Two low-rank factors."""
    return _adapted(x, weight, bias, _kron(w1_a @ w1_b, w2_a @ w2_b) * scaling)


@implements("lokr_both.merge")
def both_merge(weight, w1_a, w1_b, w2_a, w2_b, *, scaling):
    """The weight with the update in it."""
    return weight + _kron(w1_a @ w1_b, w2_a @ w2_b) * scaling


def _with_core(w1, core, w2_a, w2_b, scaling):
    """delta as a kernel: the Tucker product, then the Kronecker product over the channels."""
    return _kron(w1, tucker(core, w2_a, w2_b)) * scaling


@implements("lokr_core.merge")
def core_merge(weight, w1, core, w2_a, w2_b, *, scaling):
    """The kernel, as a matrix, with the update in it."""
    delta = _with_core(*widened(w1, core, w2_a, w2_b), scaling)
    return weight + delta.to(weight.dtype).reshape(weight.shape)


@implements("lokr_core.conv2d")
def core_conv2d(
    x, weight, w1, core, w2_a, w2_b, bias=None, *, scaling, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1
):
    """Two convolutions."""
    dtype = x.dtype
    x, weight, w1, core, w2_a, w2_b, bias = widened(x, weight, w1, core, w2_a, w2_b, bias)
    how = (stride, padding, dilation, groups)
    kernel = _with_core(w1, core, w2_a, w2_b, scaling)
    return (convolve(x, weight, bias, *how) + convolve(x, kernel, None, *how)).to(dtype)
