"""DoRA as peft has it: a variant of its LoRA layer, the norm taken as a constant in gradients."""

from refpeft_hf.declared import implements, no_mask, only
from refpeft_hf.layers import around_convolution, around_linear, called, merged

ungrouped = only("groups", 1, "peft's A sees all channels where there are groups")
detached = only("norm", "detached", "peft takes the norm as a constant in gradients")


def layer_of(weight, a, bias, scaling):
    """peft's layer for these shapes."""
    return around_linear(weight, bias, "LoraConfig", r=a.shape[0], use_dora=True, scaling=scaling)


@implements("dora.linear", no_mask, detached)
def linear(x, weight, a, b, magnitude, bias=None, mask=None, *, scaling, keep=1.0, norm="detached"):
    """``peft.tuners.lora.variants.DoraLinearVariant``."""
    layer = layer_of(weight, a, bias, scaling)
    return called(layer, x, weight, bias, lora_A=a, lora_B=b, lora_magnitude_vector=magnitude)


@implements("dora.merge", detached, gradients=False)
def merge(weight, a, b, magnitude, *, scaling, norm="detached"):
    """``merge``."""
    layer = layer_of(weight, a, None, scaling)
    return merged(layer, weight, lora_A=a, lora_B=b, lora_magnitude_vector=magnitude)


@implements("dora.conv2d", no_mask, detached, ungrouped)
def conv2d(x, weight, a, b, magnitude, bias=None, mask=None, *, scaling, keep=1.0, norm="detached", groups=1, **where):
    """``peft.tuners.lora.variants.DoraConv2dVariant``."""
    layer = around_convolution(weight, bias, groups, where, "LoraConfig", r=a.shape[0], use_dora=True, scaling=scaling)
    stretched = magnitude[None, :, None, None]
    return called(layer, x, weight, bias, lora_A=a, lora_B=b, lora_magnitude_vector=stretched)
