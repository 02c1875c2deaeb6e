"""QA-LoRA in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("qalora.linear")
def linear(x, weight, a, b, bias=None, *, scaling, group, variant="paper"):
    """The base layer and LoRA of the pooled input, side by side."""
    groups = x.shape[-1] // group
    pooled = x.unflatten(-1, (groups, group))
    pooled = pooled.sum(-1) if variant == "paper" else pooled.mean(-1) * groups
    return F.linear(x, weight, bias) + F.linear(F.linear(pooled, a), b) * scaling


@implements("qalora.merge")
def merge(weight, a, b, *, scaling, group, variant="paper"):
    """The weight with each column of the update repeated for its group."""
    factor = 1 if variant == "paper" else a.shape[1] / group
    return weight + (b @ a * scaling * factor).repeat_interleave(group, dim=1)
