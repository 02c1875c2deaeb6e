"""Uni-LoRA as peft has it: one vector for the model, and each layer's places in it and scales as buffers."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called, merged


def layer_of(weight, index_a, bias):
    """peft's layer for these shapes."""
    return around_linear(weight, bias, "UniLoraConfig", r=index_a.shape[0])


def tensors(theta, index_a, index_b, scale_a, scale_b):
    """By peft's names."""
    drawn = {"unilora_indices_A": index_a, "unilora_indices_B": index_b}
    return {"unilora_theta_d": theta, "unilora_scales_A": scale_a, "unilora_scales_B": scale_b} | drawn


@implements("unilora.linear")
def linear(x, weight, theta, index_a, index_b, scale_a, scale_b, bias=None):
    """``peft.tuners.unilora.layer.Linear``."""
    layer = layer_of(weight, index_a, bias)
    return called(layer, x, weight, bias, **tensors(theta, index_a, index_b, scale_a, scale_b))


@implements("unilora.merge", gradients=False)
def merge(weight, theta, index_a, index_b, scale_a, scale_b):
    """``merge``."""
    layer = layer_of(weight, index_a, None)
    return merged(layer, weight, **tensors(theta, index_a, index_b, scale_a, scale_b))
