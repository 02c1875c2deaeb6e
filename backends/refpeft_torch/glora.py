"""GLoRA in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


def delta(weight, scale_left, scale_right, shift_left, shift_right):
    """The weight scaled elementwise, and shifted."""
    return weight * (scale_left @ scale_right) + shift_left @ shift_right


@implements("glora.linear")
def linear(x, weight, scale_left, scale_right, shift_left, shift_right, bias=None):
    """The base layer and the update, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, delta(weight, scale_left, scale_right, shift_left, shift_right))


@implements("glora.merge")
def merge(weight, scale_left, scale_right, shift_left, shift_right):
    """The weight with the update in it."""
    return weight + delta(weight, scale_left, scale_right, shift_left, shift_right)


@implements("glora.bias")
def bias(bias, weight, c, d, e):
    """The bias scaled, shifted, and moved by the weight."""
    return bias + bias * d + e + weight @ c
