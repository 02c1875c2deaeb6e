"""AdaLoRA in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("adalora.linear")
def linear(x, weight, a, e, b, bias=None, mask=None, *, scaling, keep=1.0):
    """The base layer and three factors, side by side."""
    kept = x if mask is None else x * mask / keep
    return F.linear(x, weight, bias) + F.linear(F.linear(kept, a * e[:, None]), b) * scaling


@implements("adalora.merge")
def merge(weight, a, e, b, *, scaling):
    """The weight with the update in it."""
    return weight + scaling * (b @ (a * e[:, None]))


@implements("adalora.orthogonality")
def orthogonality(a, b, *, variant="squared"):
    """Squared Frobenius norms, or the mean of the norms."""
    parts = [g - torch.eye(len(g), dtype=g.dtype, device=g.device) for g in (a @ a.T, b.T @ b)]
    if variant == "squared":
        return sum((g * g).sum() for g in parts)
    return sum(torch.linalg.matrix_norm(g) for g in parts) / 2


@implements("adalora.importance")
def importance(p, grad, smoothed, spread, *, beta1=0.85, beta2=0.85):
    """Two exponential averages and their product."""
    now = (p * grad).abs()
    sensitivity = beta1 * smoothed + (1 - beta1) * now
    uncertainty = beta2 * spread + (1 - beta2) * (now - sensitivity).abs()
    return sensitivity, uncertainty, sensitivity * uncertainty
