"""Several LoRA adapters under fixed weights as AdapterHub has them: its ``Average``, which is X-LoRA's layer at one token."""

import torch
from adapters.composition import Average

from refpeft_hf.adapterhub.lora import no_mask
from refpeft_hf.adapterhub_layers import called, several
from refpeft_hf.declared import implements


@implements("xlora.linear", no_mask)
def linear(x, weight, a, b, gates, bias=None, mask=None, *, scaling, keep=1.0):
    """``Average`` without normalising, token by token, each with its gates as the weights."""
    layer, tensors = several(weight, bias, a, b, Average)
    for lora in layer.loras.values():
        lora.scaling = scaling
    tokens = []
    for token, weights in zip(x.reshape(-1, 1, 1, x.shape[-1]), gates.reshape(-1, len(a)).tolist()):
        layer.adapters_config.active_setup.weights = weights
        tokens.append(called(layer, token, weight, bias, tensors))
    return torch.cat(tokens or [x.new_zeros(0, len(weight))]).reshape(*x.shape[:-1], len(weight))
