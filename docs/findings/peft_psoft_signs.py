"""peft: PSOFT's file lacks A and B, which another singular value decomposition, no less right, gives other signs."""

import numpy as np
import peft
import torch


def update(i, decomposed=None):
    """Of a random adapter: as peft computes it, or with A and B of another decomposition."""
    torch.manual_seed(0)
    base = torch.nn.Linear(i, 40)
    weight = base.weight.detach().clone()
    config = peft.PsoftConfig(target_modules=["0"], r=8, psoft_alpha=8, init_weights=False)
    layer = peft.get_peft_model(torch.nn.Sequential(base), config).base_model.model[0]
    if decomposed is not None:
        u, s, vt = decomposed(weight)
        layer._set_psoft_ab_cache_buffers("default", vt[:8], u[:, :8] * s[:8])
    return layer.get_delta_weight("default").detach()


def turned(weight):
    """torch's own, with one left and its right vector turned about."""
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    u[:, 0], vt[0] = -u[:, 0], -vt[0]
    print(f"turned about, U S V is off by {(u * s @ vt - weight).abs().max() / weight.abs().max():.0e}")
    return u, s, vt


def numpy(weight):
    return [torch.from_numpy(part) for part in np.linalg.svd(weight.numpy(), full_matrices=False)]


def off(i, decomposed):
    return float(torch.linalg.norm(update(i, decomposed) - update(i)) / torch.linalg.norm(update(i)))


print(f"turned about, the update is off by {off(30, turned):.1f} of its norm")
others = [distance for i in range(30, 80) if (distance := off(i, numpy)) > 1e-3]
print(f"with NumPy's decomposition in place of torch's {len(others)} of 50 updates are others")
