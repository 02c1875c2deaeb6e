"""TinyLoRA as peft has it: frozen factors and projections, one vector for the layers of a group."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, around_linear, called, merged


def layer_of(weight, a, v, bias):
    """peft's layer for these shapes."""
    return around_linear(weight, bias, "TinyLoraConfig", r=a.shape[0], u=v.shape[0])


def tensors(layer, a, b, projections, v):
    """The layer's buffers, and the vector of its group."""
    vector = f"tinylora_v.{layer._tinylora_v_key[ADAPTER]}"
    return {"tinylora_A": a, "tinylora_B": b, "tinylora_P": projections, vector: v}


@implements("tinylora.linear")
def linear(x, weight, a, b, projections, v, bias=None):
    """``peft.tuners.tinylora.layer.Linear``."""
    layer = layer_of(weight, a, v, bias)
    return called(layer, x, weight, bias, **tensors(layer, a, b, projections, v))


@implements("tinylora.merge", gradients=False)
def merge(weight, a, b, projections, v):
    """``merge``."""
    layer = layer_of(weight, a, v, None)
    return merged(layer, weight, **tensors(layer, a, b, projections, v))
