"""LoRA of convolutions in one and in three dimensions, in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.precision import widened


def _layer(convolve, x, weight, a, b, bias, scaling, stride, padding, dilation, groups):
    """The base layer and two convolutions in a row."""
    dtype = x.dtype
    x, weight, a, b, bias = widened(x, weight, a, b, bias)
    base = convolve(x, weight, bias, stride, padding, dilation, groups)
    return (base + scaling * convolve(convolve(x, a, None, stride, padding, dilation), b, groups=groups)).to(dtype)


@implements("lora.conv1d")
def conv1d(x, weight, a, b, bias=None, *, scaling, stride=1, padding=0, dilation=1, groups=1):
    """Of sequences."""
    return _layer(F.conv1d, x, weight, a, b, bias, scaling, stride, padding, dilation, groups)


@implements("lora.conv3d")
def conv3d(x, weight, a, b, bias=None, *, scaling, stride=(1, 1, 1), padding=(0, 0, 0), dilation=(1, 1, 1), groups=1):
    """Of volumes."""
    return _layer(F.conv3d, x, weight, a, b, bias, scaling, stride, padding, dilation, groups)
