"""Lily as peft has it; it wants two B at least, for its router's sake."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called


def two_at_least(shapes, attributes):
    """A mixture of several."""
    return "" if shapes["b"][0] >= 2 else "peft refuses a single B"


@implements("lily.linear", two_at_least)
def linear(x, weight, a, b, router, bias=None, *, scaling):
    """``peft.tuners.lily.layer.Linear``, the B one above another."""
    layer = around_linear(weight, bias, "LilyConfig", r=b.shape[1], num_B=b.shape[0], scaling=scaling)
    return called(layer, x, weight, bias, lily_A=a, lily_B=b.flatten(0, 1), lily_router=router)
