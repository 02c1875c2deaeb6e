"""Arrow in torch."""

import torch.nn.functional as F

from refpeft_torch import xlora
from refpeft_torch.autograd import implements


@implements("arrow.linear")
def linear(x, weight, a, b, prototypes, bias=None, *, scaling, chosen, temperature=1.0):
    """Each token's largest scores alone under a softmax, and X-LoRA's layer with these gates; of equal scores the first."""
    scores = F.linear(x, prototypes).abs()
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :chosen]
    shares = (scores.gather(-1, best) / temperature).softmax(-1)
    gates = scores.new_zeros(scores.shape).scatter(-1, best, shares)
    return xlora.linear(x, weight, a, b, gates, bias, scaling=scaling)
