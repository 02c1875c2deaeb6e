"""Convolution with any padding mode, and kernels as Tucker products."""

import torch
import torch.nn.functional as F


def convolve(x, kernel, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, mode="zeros"):
    """Cross-correlation of x (n, c, h, w) with a kernel (o, c / groups, kh, kw)."""
    if mode == "zeros":
        return F.conv2d(x, kernel, bias, stride, padding, dilation, groups)
    around = (padding[1], padding[1], padding[0], padding[0])
    return F.conv2d(F.pad(x, around, mode=mode), kernel, bias, stride, 0, dilation, groups)


def tucker(core, u, v):
    """(o, c, kh, kw) from a core (r, r, kh, kw), u (r, o) and v (r, c)."""
    return torch.einsum("pjkl,jr->prkl", torch.einsum("ijkl,ip->pjkl", core, u), v)
