"""DEFT as peft has it: in float32, around the base layer's result less its bias."""

from refpeft_hf.declared import implements, only
from refpeft_hf.layers import ADAPTER, around_linear, called, merged

relu = only("projection", "relu", "peft orthonormalises the subspace itself")


def no_wider(shapes, attributes):
    """A subspace of the outputs."""
    o, r = shapes["subspace"]
    return "" if 1 <= r <= o else "peft caps the rank at the number of outputs, and refuses none"


def layer_of(weight, subspace, bias, scaling, variant):
    """peft's layer for these shapes."""
    layer = around_linear(weight, bias, "DeftConfig", r=subspace.shape[1], para=variant == "para")
    layer.deft_scaling[ADAPTER] = scaling
    return layer


def parameters(subspace, fill, variant):
    """By peft's names; PaRa has no R."""
    return {"deft_P": subspace} | ({"deft_R": fill} if variant == "deft" else {})


@implements("deft.linear", relu, no_wider)
def linear(x, weight, subspace, fill, bias=None, *, scaling, projection="relu", variant="deft"):
    """``peft.tuners.deft.layer.DeftLinear``."""
    layer = layer_of(weight, subspace, bias, scaling, variant)
    return called(layer, x, weight, bias, **parameters(subspace, fill, variant))


@implements("deft.merge", relu, no_wider, gradients=False)
def merge(weight, subspace, fill, *, scaling, projection="relu", variant="deft"):
    """``merge``."""
    layer = layer_of(weight, subspace, None, scaling, variant)
    return merged(layer, weight, **parameters(subspace, fill, variant))
