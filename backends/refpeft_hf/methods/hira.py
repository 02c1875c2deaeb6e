"""HiRA as peft has it."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called, merged


@implements("hira.linear")
def linear(x, weight, a, b, bias=None):
    """``peft.tuners.hira.layer.Linear``."""
    return called(around_linear(weight, bias, "HiraConfig", r=a.shape[0]), x, weight, bias, hira_A=a, hira_B=b)


@implements("hira.merge", gradients=False)
def merge(weight, a, b):
    """``merge``."""
    return merged(around_linear(weight, None, "HiraConfig", r=a.shape[0]), weight, hira_A=a, hira_B=b)
