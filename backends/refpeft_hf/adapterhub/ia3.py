"""(IA)^3 as AdapterHub has it: a scale of the layer's outputs."""

from refpeft_hf.adapterhub.lora import layer_of, named
from refpeft_hf.adapterhub_layers import called, merged
from refpeft_hf.declared import implements, only

HOW = {"attn_matrices": ("q",)}
outputs = only("side", "output", "adapters scales outputs")


@implements("ia3.linear", outputs)
def linear(x, weight, scale, bias=None, *, side="output"):
    """``LoRALinear`` with ``IA3``."""
    return called(layer_of(weight, bias, 1, "IA3Config", **HOW), x, weight, bias, named(lora_B=scale.unsqueeze(1)))


@implements("ia3.merge", outputs, gradients=False)
def merge(weight, scale, *, side="output"):
    """``merge_adapter``."""
    return merged(layer_of(weight, None, 1, "IA3Config", **HOW), weight, named(lora_B=scale.unsqueeze(1)))
