"""X-LoRA in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("xlora.linear")
def linear(x, weight, a, b, gates, bias=None, mask=None, *, scaling, keep=1.0):
    """The base layer, and the adapters side by side with a gate on each one's rank."""
    if mask is None:
        hidden = F.linear(x, a.flatten(0, 1)).unflatten(-1, a.shape[:2])
    else:
        hidden = ((x[..., None, :] * mask / keep)[..., None, :] @ a.mT)[..., 0, :]
    gated = (hidden * gates[..., None]).flatten(-2)
    return F.linear(x, weight, bias) + scaling * F.linear(gated, b.transpose(0, 1).flatten(1))


@implements("xlora.gates")
def gates(hidden, head, head_bias=None, *, temperature=1.0):
    """The classifier's head."""
    return (F.linear(hidden, head, head_bias) / temperature).softmax(-1)


@implements("xlora.top")
def top(gates, *, chosen, softmax=False):
    """All but the largest set to zero, of equals the first kept; a softmax over those that are not zero."""
    largest = gates.argsort(dim=-1, descending=True, stable=True)[..., :chosen]
    left = torch.zeros_like(gates, dtype=torch.bool).scatter(-1, largest, True)
    kept = gates.masked_fill(~left, 0)
    if not softmax:
        return kept
    gone = kept == 0
    return kept.masked_fill(gone, -torch.inf).softmax(-1).masked_fill(gone, 0)
