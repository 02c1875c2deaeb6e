"""GLoRA as peft has it: the base result is taken, the adapted one added, and the base result taken off again."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called, filled, merged


def layer_of(weight, scale_left, bias):
    """peft's layer with A and B as low-rank matrices, and nothing for the bias."""
    return around_linear(weight, bias, "GloraConfig", r=scale_left.shape[1], config_C="none", config_D_E="none")


def factors(scale_left, scale_right, shift_left, shift_right):
    """By peft's names: A scales, B shifts."""
    scale = {"glora_A.Xd": scale_left, "glora_A.Xu": scale_right}
    return scale | {"glora_B.Xd": shift_left, "glora_B.Xu": shift_right}


@implements("glora.linear")
def linear(x, weight, scale_left, scale_right, shift_left, shift_right, bias=None):
    """``peft.tuners.glora.layer.GloraLinear``."""
    layer = layer_of(weight, scale_left, bias)
    return called(layer, x, weight, bias, **factors(scale_left, scale_right, shift_left, shift_right))


@implements("glora.merge", gradients=False)
def merge(weight, scale_left, scale_right, shift_left, shift_right):
    """``merge``."""
    layer = layer_of(weight, scale_left, None)
    return merged(layer, weight, **factors(scale_left, scale_right, shift_left, shift_right))


@implements("glora.bias", gradients=False)
def adapted(bias, weight, c, d, e):
    """The bias after ``merge``, C, D and E as vectors."""
    layer = around_linear(weight, bias, "GloraConfig", config_A_B="none", config_C="vector", config_D_E="vector")
    layer = filled(layer, weight, bias, **{"glora_C.X": c.unsqueeze(1), "glora_D.X": d, "glora_E.X": e})
    layer.merge()
    return layer.get_base_layer().bias.data
