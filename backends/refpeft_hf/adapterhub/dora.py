"""DoRA as AdapterHub has it, with gradients through the norm."""

from refpeft_hf.adapterhub.lora import layer_of, named, no_mask
from refpeft_hf.adapterhub_layers import called, merged
from refpeft_hf.declared import implements, only

full = only("norm", "full", "adapters takes gradients through the norm")


def tensors_of(a, b, magnitude):
    """The adapter's tensors by name; the magnitude is the weight of a linear layer."""
    return named(lora_A=a, lora_B=b) | named(**{"m.weight": magnitude.unsqueeze(1)})


@implements("dora.linear", no_mask, full)
def linear(x, weight, a, b, magnitude, bias=None, mask=None, *, scaling, keep=1.0, norm="detached"):
    """``LoRALinear`` with ``compute_dora_deltaw``."""
    layer = layer_of(weight, bias, scaling, "DoRAConfig", r=a.shape[0])
    return called(layer, x, weight, bias, tensors_of(a, b, magnitude))


@implements("dora.merge", gradients=False)
def merge(weight, a, b, magnitude, *, scaling, norm="detached"):
    """``merge_adapter``."""
    return merged(layer_of(weight, None, scaling, "DoRAConfig", r=a.shape[0]), weight, tensors_of(a, b, magnitude))
