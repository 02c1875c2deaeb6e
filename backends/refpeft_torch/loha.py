"""LoHa in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.convolution import convolve, tucker
from refpeft_torch.precision import widened


def delta(w1_a, w1_b, w2_a, w2_b, scaling):
    """The elementwise product of two low-rank matrices."""
    return (w1_a @ w1_b) * (w2_a @ w2_b) * scaling


@implements("loha.linear")
def linear(x, weight, w1_a, w1_b, w2_a, w2_b, bias=None, *, scaling):
    """The base layer and the update, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, delta(w1_a, w1_b, w2_a, w2_b, scaling))


@implements("loha.merge")
def merge(weight, w1_a, w1_b, w2_a, w2_b, *, scaling):
    """The weight with the update in it."""
    return weight + delta(w1_a, w1_b, w2_a, w2_b, scaling)


@implements("loha.conv2d")
def conv2d(
    x, weight, w1_a, w1_b, w2_a, w2_b, bias=None, *, scaling, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1
):
    """Two convolutions."""
    dtype = x.dtype
    x, weight, w1_a, w1_b, w2_a, w2_b, bias = widened(x, weight, w1_a, w1_b, w2_a, w2_b, bias)
    kernel = delta(w1_a, w1_b, w2_a, w2_b, scaling).reshape(weight.shape)
    how = (stride, padding, dilation, groups)
    return (convolve(x, weight, bias, *how) + convolve(x, kernel, None, *how)).to(dtype)


def with_cores(core1, w1_a, w1_b, core2, w2_a, w2_b, scaling):
    """The elementwise product of two Tucker products, a kernel."""
    return tucker(core1, w1_a, w1_b) * tucker(core2, w2_a, w2_b) * scaling


@implements("loha_core.merge")
def core_merge(weight, core1, w1_a, w1_b, core2, w2_a, w2_b, *, scaling):
    """The kernel, as a matrix, with the update in it."""
    delta = with_cores(*widened(core1, w1_a, w1_b, core2, w2_a, w2_b), scaling)
    return weight + delta.to(weight.dtype).reshape(weight.shape)


@implements("loha_core.conv2d")
def core_conv2d(x, weight, core1, w1_a, w1_b, core2, w2_a, w2_b, bias=None, *, scaling, **how):
    """Two convolutions."""
    dtype, factors = x.dtype, widened(core1, w1_a, w1_b, core2, w2_a, w2_b)
    x, weight, bias = widened(x, weight, bias)
    return (F.conv2d(x, weight, bias, **how) + F.conv2d(x, with_cores(*factors, scaling), **how)).to(dtype)
