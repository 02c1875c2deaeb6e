"""Poly in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.factored import gathered


@implements("poly.linear")
def linear(x, weight, a, b, logits, task, noise=None, bias=None, *, scaling, epsilon=1e-12):
    """The base layer, and for each sequence a LoRA of its task."""
    scores = gathered(logits, task)
    gates = torch.sigmoid(scores if noise is None else scores + noise)
    shares = gates / (gates.sum(-1, keepdim=True) + epsilon)
    down = torch.einsum("...qs,qscr->...qcr", shares, a).flatten(-3, -2)
    up = torch.einsum("...qs,qsrc->...rqc", shares, b).flatten(-2)
    return F.linear(x, weight, bias) + scaling * ((x @ down) @ up)
