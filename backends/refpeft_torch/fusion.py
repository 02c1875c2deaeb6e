"""AdapterFusion in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("adapter.fusion")
def fusion(x, adapted, query, key, value, query_bias=None, residual=None, *, temperature=1.0):
    """Softmax attention with one query a vector and the adapters as positions."""
    q = F.linear(x, query, query_bias).unsqueeze(-1)
    weights = torch.softmax((F.linear(adapted, key) @ q).squeeze(-1) / temperature, dim=-1)
    y = (weights.unsqueeze(-2) @ F.linear(adapted, value)).squeeze(-2)
    return y if residual is None else y + residual
