"""LoRA of a convolution, in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


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
    """The base layer and the scaled low-rank path: two convolutions in a row, the second 1 x 1.

    float16 on the CPU is computed in float32: torch's own kernels for it accumulate gradients in float16.
    """

    def convolve(x, kernel, bias=None, groups=1):
        if padding_mode == "zeros":
            return F.conv2d(x, kernel, bias, stride, padding, dilation, groups)
        around = (padding[1], padding[1], padding[0], padding[0])
        return F.conv2d(F.pad(x, around, mode=padding_mode), kernel, bias, stride, 0, dilation, groups)

    dtype = x.dtype
    if dtype == torch.float16 and not x.is_cuda:
        x, weight, a, b, bias, lora_bias = (t if t is None else t.float() for t in (x, weight, a, b, bias, lora_bias))
    kept = x if mask is None else x * mask / keep
    y = convolve(x, weight, bias, groups) + scaling * F.conv2d(convolve(kept, a), b, lora_bias, groups=groups)
    return y.to(dtype)
