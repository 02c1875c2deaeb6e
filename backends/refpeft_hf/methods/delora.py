"""DeLoRA as peft has it, with the norms of the weight's columns; without them they are ones."""

import torch

from refpeft_hf.declared import implements, only
from refpeft_hf.layers import around_linear, called, merged

floor_of_peft = only("floor", 1e-4, "peft's floor is 1e-4")


def tensors(a, b, boundary, norms):
    """By peft's names."""
    norms = torch.ones(a.shape[1], dtype=a.dtype) if norms is None else norms
    return {"delora_A": a, "delora_B": b, "delora_lambda": boundary.unsqueeze(0), "delora_w_norm": norms}


@implements("delora.linear", floor_of_peft)
def linear(x, weight, a, b, boundary, norms=None, bias=None, *, floor=1e-4):
    """``peft.tuners.delora.layer.DeloraLinear``."""
    layer = around_linear(weight, bias, "DeloraConfig", r=a.shape[0])
    return called(layer, x, weight, bias, **tensors(a, b, boundary, norms))


@implements("delora.merge", floor_of_peft, gradients=False)
def merge(weight, a, b, boundary, norms=None, *, floor=1e-4):
    """``merge``."""
    layer = around_linear(weight, None, "DeloraConfig", r=a.shape[0])
    return merged(layer, weight, **tensors(a, b, boundary, norms))
