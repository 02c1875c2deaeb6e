"""DoRA of a convolution, in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.dora import factors
from refpeft_torch.precision import widened


@implements("dora.conv2d")
def conv2d(x, weight, a, b, magnitude, bias=None, mask=None, *, scaling, keep=1.0, norm="detached", groups=1, **where):
    """The base layer and the adapter's path beside it, the filters' norms as those of rows."""
    dtype = x.dtype
    x, weight, a, b, magnitude, bias = widened(x, weight, a, b, magnitude, bias)
    _, factor = factors(weight.flatten(1), a.flatten(1), b.flatten(1), magnitude, scaling, norm)
    factor, how = factor[:, None, None], {"groups": groups, **where}
    kept = x if mask is None else torch.where(mask, x / keep, 0)
    down = F.conv2d(kept, a.repeat(groups, 1, 1, 1), **how)
    update = scaling * F.conv2d(down, b, groups=groups)
    if mask is None:
        y = factor * (F.conv2d(x, weight, **how) + update)
    else:
        y = F.conv2d(x, weight, **how) + (factor - 1) * F.conv2d(kept, weight, **how) + factor * update
    return (y if bias is None else y + bias[:, None, None]).to(dtype)
