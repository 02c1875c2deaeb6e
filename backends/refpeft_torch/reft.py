"""ReFT in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("reft.edit")
def edit(x, source, projection, bias=None, *, subtract=True):
    """Two linear layers, the second one transposed."""
    values = F.linear(x, source, bias)
    if subtract:
        values = values - F.linear(x, projection)
    return x + values @ projection
