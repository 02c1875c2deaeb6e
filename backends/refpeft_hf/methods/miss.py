"""MiSS as peft has it, with its mini and bat forms."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called, merged


def no_wider(shapes, attributes):
    """Blocks fit into a row."""
    return "" if shapes["block"][0] <= shapes["weight"][1] else "peft refuses blocks that are wider than the input"


def layer_of(weight, block, bias):
    """peft's layer: mini where the block is narrower than the layer."""
    r, m = block.shape
    mini = {"init_weights": "mini", "mini_r": m} if m != weight.shape[0] else {}
    return around_linear(weight, bias, "MissConfig", r=r, **mini)


@implements("miss.linear", no_wider)
def linear(x, weight, block, bias=None):
    """``peft.tuners.miss.layer.MissLinear``."""
    return called(layer_of(weight, block, bias), x, weight, bias, miss_block=block)


@implements("miss.merge", no_wider, gradients=False)
def merge(weight, block):
    """``merge``."""
    return merged(layer_of(weight, block, None), weight, miss_block=block)


@implements("miss_bat.linear")
def bat(x, weight, block, bias=None):
    """The form that multiplies blocks of the base weight."""
    layer = around_linear(weight, bias, "MissConfig", r=block.shape[1], init_weights="bat")
    return called(layer, x, weight, bias, miss_block=block)


@implements("miss_bat.merge", gradients=False)
def bat_merge(weight, block):
    """``merge``."""
    layer = around_linear(weight, None, "MissConfig", r=block.shape[1], init_weights="bat")
    return merged(layer, weight, miss_block=block)
