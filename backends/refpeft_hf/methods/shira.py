"""SHiRA as peft has it: a sparse matrix, as large as LoRA of some rank, is added to a copy of the weight."""

import torch

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, around_linear, called, merged


def large_enough(shapes, attributes):
    """LoRA of rank one is no larger than the weight."""
    o, i = shapes["weight"]
    return "" if o + i <= o * i else "peft refuses a weight that is smaller than LoRA of rank one"


def layer_of(weight, places, bias):
    """peft's layer for these shapes, with the problem's places."""
    layer = around_linear(weight, bias, "ShiraConfig", r=1)
    layer.shira_indices[ADAPTER] = torch.stack([places // weight.shape[1], places % weight.shape[1]])
    return layer


@implements("shira.linear", large_enough)
def linear(x, weight, values, places, bias=None):
    """``peft.tuners.shira.layer.Linear``."""
    return called(layer_of(weight, places, bias), x, weight, bias, shira_weight=values)


@implements("shira.merge", large_enough, gradients=False)
def merge(weight, values, places):
    """``merge``."""
    return merged(layer_of(weight, places, None), weight, shira_weight=values)
