"""LoRA on the weights of experts, in torch."""

import torch

from refpeft_torch.autograd import implements
from refpeft_torch.precision import wide


def of_experts(weight, a, b, layout):
    """W_j (e, o, i), A_j (e, r, i) and B_j (e, o, r)."""
    e = len(weight)
    w = weight if layout == "out_in" else weight.mT
    return w, a.unflatten(0, (e, len(a) // e)), b.unflatten(1, (len(a) // e, e)).permute(2, 0, 1)


@implements("lora.experts")
def experts(x, expert, weight, a, b, *, scaling, layout="out_in"):
    """Batched products, a token each; gathered in float32 at least, as autograd adds up in the dtype that was gathered."""
    w, a, b = (wide(p)[expert].to(p.dtype) for p in of_experts(weight, a, b, layout))
    x = x[:, None]
    return (torch.bmm(x, w.mT) + scaling * torch.bmm(torch.bmm(x, a.mT), b.mT))[:, 0]


@implements("lora.experts_merge")
def merge(weight, a, b, *, scaling, layout="out_in"):
    """All experts in one product."""
    _, a, b = of_experts(weight, a, b, layout)
    update = scaling * torch.bmm(b, a)
    return weight + (update if layout == "out_in" else update.mT)
