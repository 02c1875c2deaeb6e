"""QLoRA in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.nf4 import decode


@implements("qlora.linear")
def linear(x, packed, absmax, a, b, bias=None, *, scaling, blocksize, dtype):
    """The frozen base dequantised on the fly, and the scaled low-rank path beside it."""
    shape = b.shape[0], a.shape[1]
    with torch.no_grad():
        weight = decode(packed, absmax, shape[0] * shape[1], blocksize).to(x.dtype).view(shape)
    return F.linear(x, weight, bias) + scaling * F.linear(F.linear(x, a), b)
