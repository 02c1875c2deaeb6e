"""LoRA of a convolution, in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.convolution import convolve
from refpeft_torch.precision import widened


@implements("lora.conv2d")
def conv2d(
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
    """The base layer and the scaled low-rank path: two convolutions in a row, the second 1 x 1."""

    dtype = x.dtype
    x, weight, a, b, bias, lora_bias = widened(x, weight, a, b, bias, lora_bias)
    kept = x if mask is None else torch.where(mask, x / keep, 0)
    shape = (stride, padding, dilation)
    base = convolve(x, weight, bias, *shape, groups, padding_mode)
    y = base + scaling * F.conv2d(convolve(kept, a, None, *shape, 1, padding_mode), b, lora_bias, groups=groups)
    return y.to(dtype)
