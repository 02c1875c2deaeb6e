"""IA3 as peft has it: ``feedforward`` layers scale their input, others their output."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_convolution, around_linear, called, merged


def layer_of(weight, bias, side):
    """peft's layer for these shapes."""
    return around_linear(weight, bias, "IA3Config", feedforward_modules=feedforward(side))


def feedforward(side):
    """Names of the layers that scale their input."""
    return ("adapted",) if side == "input" else ()


def vector(scale, side):
    """As peft stores it: a row or a column."""
    return scale.unsqueeze(0 if side == "input" else 1)


@implements("ia3.linear")
def linear(x, weight, scale, bias=None, *, side="output"):
    """``peft.tuners.ia3.layer.Linear``."""
    return called(layer_of(weight, bias, side), x, weight, bias, ia3_l=vector(scale, side))


@implements("ia3.merge", gradients=False)
def merge(weight, scale, *, side="output"):
    """``merge``."""
    return merged(layer_of(weight, None, side), weight, ia3_l=vector(scale, side))


@implements("ia3.conv2d")
def conv2d(x, weight, scale, bias=None, *, side="output", groups=1, **where):
    """``peft.tuners.ia3.layer.Conv2d``."""
    layer = around_convolution(weight, bias, groups, where, "IA3Config", feedforward_modules=feedforward(side))
    return called(layer, x, weight, bias, ia3_l=scale[None, :, None, None])


@implements("ia3.conv2d_merge", gradients=False)
def conv2d_merge(weight, scale, *, side="output", groups=1):
    """``merge``."""
    layer = around_convolution(weight, None, groups, {}, "IA3Config", feedforward_modules=feedforward(side))
    return merged(layer, weight, ia3_l=scale[None, :, None, None])
