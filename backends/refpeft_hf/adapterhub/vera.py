"""VeRA as AdapterHub has it: its vectors are matrices, of which the problem's are the diagonals, and it has a scale, here 1."""

import torch

from refpeft_hf.adapterhub.lora import layer_of, named, no_mask
from refpeft_hf.adapterhub_layers import ADAPTER, called, merged
from refpeft_hf.declared import implements


def tensors_of(lambda_d, lambda_b):
    """The adapter's tensors by name."""
    return named(vera_D=torch.diag(lambda_d), vera_B=torch.diag(lambda_b))


def shared(a, b):
    """What all layers share, as the context of a forward pass has it."""
    return {"shared_parameters": {ADAPTER: {"lora_A": a, "lora_B": b}}}


@implements("vera.linear", no_mask)
def linear(x, weight, a, b, lambda_d, lambda_b, bias=None, mask=None, *, keep=1.0):
    """``LoRALinear`` with ``Vera``."""
    layer = layer_of(weight, bias, 1, "VeraConfig", r=len(a))
    return called(layer, x, weight, bias, tensors_of(lambda_d, lambda_b), **shared(a, b))


@implements("vera.merge", gradients=False)
def merge(weight, a, b, lambda_d, lambda_b):
    """``merge_adapter``."""
    layer = layer_of(weight, None, 1, "VeraConfig", r=len(a))
    return merged(layer, weight, tensors_of(lambda_d, lambda_b), **shared(a, b))
