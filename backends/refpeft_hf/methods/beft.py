"""BEFT as peft has it."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called


@implements("beft.linear")
def linear(x, weight, shift, bias=None):
    """``peft.tuners.beft.layer.Linear``."""
    return called(around_linear(weight, bias, "BeftConfig"), x, weight, bias, beft_bias=shift.unsqueeze(0))
