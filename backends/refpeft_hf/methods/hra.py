"""HRA as peft has it: a chain of reflections, or orthonormal ones by Gram-Schmidt."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called, merged


def layer_of(weight, u, bias, variant):
    """peft's layer for these shapes."""
    return around_linear(weight, bias, "HRAConfig", r=u.shape[1], apply_GS=variant == "gram_schmidt")


@implements("hra.linear")
def linear(x, weight, u, bias=None, *, variant="chain"):
    """``peft.tuners.hra.layer.HRALinear``."""
    return called(layer_of(weight, u, bias, variant), x, weight, bias, hra_u=u)


@implements("hra.merge", gradients=False)
def merge(weight, u, *, variant="chain"):
    """``merge``."""
    return merged(layer_of(weight, u, None, variant), weight, hra_u=u)
