"""LoRA with an adapter for each sequence, in torch.

The adapters are gathered in float32 at least: autograd adds gradients of one adapter up in the dtype that was gathered.
"""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.precision import wide


@implements("lora.batched")
def batched(x, adapter, weight, a, b, scaling, bias=None):
    """The base layer for all, and two batched products for the adapters."""
    a, b, scaling = (wide(p)[adapter].to(p.dtype) for p in (a, b, scaling))
    update = torch.bmm(torch.bmm(x, a.mT), b.mT)
    return F.linear(x, weight, bias) + scaling[:, None, None] * update
