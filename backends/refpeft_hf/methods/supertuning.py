"""Supra as peft has it: Super-tuning, which is SHiRA's layer with other places, and LoRA beside it."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, around_linear, called, merged


def layer_of(weight, bias, scaling):
    """peft's layer; its alpha / r is the problem's scaling over one."""
    layer = around_linear(weight, bias, "SupertuningConfig", sparsity=0.0, r=1, lora_alpha=1)
    layer.supertuning_lora_alpha[ADAPTER] = scaling
    return layer


def tensors(values, places, a, b):
    """By peft's names."""
    sparse = {"supertuning_values": values, "supertuning_indices": places}
    return sparse | {"supertuning_lora_A": a, "supertuning_lora_B": b}


@implements("supra.linear")
def linear(x, weight, values, places, a, b, bias=None, *, scaling):
    """``peft.tuners.supertuning.layer.Linear``."""
    return called(layer_of(weight, bias, scaling), x, weight, bias, **tensors(values, places, a, b))


@implements("supra.merge", gradients=False)
def merge(weight, values, places, a, b, *, scaling):
    """``merge``."""
    return merged(layer_of(weight, None, scaling), weight, **tensors(values, places, a, b))
