"""OFT in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.convolution import convolve
from refpeft_torch.precision import widened
from refpeft_torch.rotation import rotation, turn


@implements("oft.linear")
def linear(x, weight, skew, bias=None, *, block, share=False, variant="paper", terms=5):
    """The base layer on turned inputs."""
    return F.linear(turn(x, rotation(skew, block, variant, terms)), weight, bias)


@implements("oft.merge")
def merge(weight, skew, *, block, share=False, variant="paper", terms=5):
    """The neurons turned."""
    return turn(weight, rotation(skew, block, variant, terms).mT)


@implements("oft.conv2d")
def conv2d(
    x,
    weight,
    skew,
    bias=None,
    *,
    block,
    share=False,
    variant="paper",
    terms=5,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
):
    """The base layer with its filters turned."""
    dtype = x.dtype
    x, weight, skew, bias = widened(x, weight, skew, bias)
    kernel = turn(weight.flatten(1), rotation(skew, block, variant, terms).mT).view_as(weight)
    return convolve(x, kernel, bias, stride, padding, dilation, groups).to(dtype)
