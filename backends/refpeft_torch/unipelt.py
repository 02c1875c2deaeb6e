"""UniPELT's gated layers in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.adapter import ACTIVATIONS
from refpeft_torch.autograd import implements
from refpeft_torch.prefix import behind


def gates(x, gate, gate_bias):
    """A number of each sequence for each row of the gate."""
    return torch.sigmoid(F.linear(x, gate, gate_bias)).mean(dim=-2)


@implements("unipelt.linear")
def linear(x, weight, a, b, gate, gate_bias=None, bias=None, mask=None, *, keep=1.0):
    """The base layer, and LoRA times its gate."""
    kept = x if mask is None else x * mask / keep
    return F.linear(x, weight, bias) + gates(x, gate, gate_bias).unsqueeze(-1) * F.linear(F.linear(kept, a), b)


@implements("unipelt.bottleneck")
def bottleneck(
    x,
    down,
    up,
    gate,
    residual=None,
    down_bias=None,
    up_bias=None,
    gate_bias=None,
    *,
    activation="relu",
    scaling=1.0,
):
    """The adapter times its gate, added to the residual."""
    update = F.linear(ACTIVATIONS[activation](F.linear(x, down, down_bias)), up, up_bias) * scaling
    update = update * gates(x, gate, gate_bias).unsqueeze(-1)
    return update if residual is None else residual + update


@implements("unipelt.attention")
def attention(q, k, v, prefix_k, prefix_v, hidden, gate, gate_bias=None, mask=None, *, causal=False, offset=0):
    """Attention behind a prefix that each sequence has gated."""
    g = gates(hidden, gate, gate_bias)[..., None, None, :]
    return behind(q, k, v, prefix_k * g[..., :1], prefix_v * g[..., -1:], mask, causal, offset)
