"""GraLoRA as peft has it, with its ordinary LoRA of rank ``hybrid_r`` beside it."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called, merged


def two_or_three_axes(shapes, attributes):
    """Rows, or sequences of them."""
    return "" if len(shapes["x"]) in (2, 3) else "peft's GraLoRA takes inputs of two or three axes"


def layer_of(weight, block_a, general_a, bias, scaling):
    """peft's layer for these shapes."""
    how = {"r": block_a.shape[2], "gralora_k": block_a.shape[0], "hybrid_r": general_a.shape[0]}
    return around_linear(weight, bias, "GraloraConfig", scaling=scaling, **how)


def factors(block_a, block_b, general_a, general_b):
    """The layer's parameters, without the ordinary LoRA's where it has no rank."""
    general = {"gralora_A_general": general_a, "gralora_B_general": general_b} if general_a.shape[0] else {}
    return {"gralora_A": block_a, "gralora_B": block_b} | general


@implements("gralora.linear", two_or_three_axes)
def linear(x, weight, block_a, block_b, general_a, general_b, bias=None, *, scaling):
    """``peft.tuners.gralora.layer.Linear``."""
    layer = layer_of(weight, block_a, general_a, bias, scaling)
    return called(layer, x, weight, bias, **factors(block_a, block_b, general_a, general_b))


@implements("gralora.merge", gradients=False)
def merge(weight, block_a, block_b, general_a, general_b, *, scaling):
    """``merge``."""
    layer = layer_of(weight, block_a, general_a, None, scaling)
    return merged(layer, weight, **factors(block_a, block_b, general_a, general_b))
