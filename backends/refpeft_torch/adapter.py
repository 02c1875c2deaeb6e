"""Bottleneck adapters in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.gelu import exact
from refpeft_torch.precision import widened

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": exact,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


@implements("adapter.bottleneck")
def bottleneck(
    x,
    down,
    up,
    residual=None,
    down_bias=None,
    up_bias=None,
    gain=None,
    *,
    activation="relu",
    scaling=1.0,
    per="layer",
):
    """Two linear layers with an activation between them, added to the residual."""
    update = F.linear(ACTIVATIONS[activation](F.linear(x, down, down_bias)), up, up_bias) * scaling
    if gain is not None:
        update = gain * update
    return update if residual is None else residual + update


@implements("adapter.sublayer")
def sublayer(
    x,
    hidden,
    down,
    up,
    weight,
    bias,
    down_bias=None,
    up_bias=None,
    *,
    placement="houlsby",
    activation="relu",
    scaling=1.0,
    eps=1e-5,
):
    """The adapter behind its sublayer, behind the norm, or beside the sublayer; then the norm."""
    dtype = x.dtype
    x, hidden, down, up, weight, bias, down_bias, up_bias = widened(
        x, hidden, down, up, weight, bias, down_bias, up_bias
    )

    def norm(v):
        return F.layer_norm(v, v.shape[-1:], weight, bias, eps)

    read = {"houlsby": hidden, "pfeiffer": norm(x + hidden), "parallel": x}[placement]
    update = F.linear(ACTIVATIONS[activation](F.linear(read, down, down_bias)), up, up_bias)
    return norm(x + (hidden + scaling * update)).to(dtype)
