"""HRA as peft has it: a chain of reflections, or orthonormal ones by Gram-Schmidt."""

from refpeft_hf.declared import implements, only
from refpeft_hf.layers import around_convolution, around_linear, called, merged

ungrouped = only("groups", 1, "peft's HRA takes no groups")


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


@implements("hra.conv2d", ungrouped)
def conv2d(x, weight, u, bias=None, *, variant="chain", groups=1, **where):
    """``peft.tuners.hra.layer.HRAConv2d``."""
    options = {"r": u.shape[1], "apply_GS": variant == "gram_schmidt"}
    layer = around_convolution(weight, bias, groups, where, "HRAConfig", **options)
    return called(layer, x, weight, bias, hra_u=u)
