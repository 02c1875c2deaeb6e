"""Invertible adapters in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.adapter import ACTIVATIONS
from refpeft_torch.autograd import implements


@implements("nice.couple")
def couple(
    x,
    f_down,
    f_up,
    g_down,
    g_up,
    f_down_bias=None,
    f_up_bias=None,
    g_down_bias=None,
    g_up_bias=None,
    *,
    activation="relu",
    inverse=False,
):
    """Two halves, each moved by a network of the other."""

    def f(v):
        return F.linear(ACTIVATIONS[activation](F.linear(v, f_down, f_down_bias)), f_up, f_up_bias)

    def g(v):
        return F.linear(ACTIVATIONS[activation](F.linear(v, g_down, g_down_bias)), g_up, g_up_bias)

    first, second = x.tensor_split([x.shape[-1] // 2], dim=-1)
    if inverse:
        second = second - g(first)
        first = first - f(second)
    else:
        first = first + f(second)
        second = second + g(first)
    return torch.cat([first, second], dim=-1)
