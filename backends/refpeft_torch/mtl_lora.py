"""MTL-LoRA in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("mtl_lora.linear")
def linear(x, weight, a, b, core, mixing, task, bias=None, *, scaling, sharpness, form="diagonal"):
    """LoRA with the task's matrix inside, and its average of the up-projections."""
    own, p = core[task], torch.softmax(mixing[task] / sharpness, dim=-1)
    h = F.linear(x, a)
    h = h * own if form == "diagonal" else h @ own.mT
    projected = torch.einsum("...tr,kor->...kto", h, b)
    return F.linear(x, weight, bias) + scaling * (p[..., None, None] * projected).sum(dim=-3)
