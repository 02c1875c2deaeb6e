"""DeLoRA as peft has it: the norms of the base weight's columns are kept from when the layer was made; the floor is 1e-4."""

from refpeft_hf.declared import implements, only
from refpeft_hf.layers import around_linear, called, merged

floor = only("floor", 1e-4, "peft's floor for norms is 1e-4")


def with_norms(shapes, attributes):
    """They are there in every layer."""
    return "" if "norms" in shapes else "peft always multiplies by the norms of the base weight's columns"


def parameters(a, b, boundary, norms):
    """By peft's names."""
    return {"delora_A": a, "delora_B": b, "delora_lambda": boundary.reshape(1), "delora_w_norm": norms}


@implements("delora.linear", floor, with_norms)
def linear(x, weight, a, b, boundary, norms=None, bias=None, *, floor=1e-4):
    """``peft.tuners.delora.layer.DeloraLinear``."""
    layer = around_linear(weight, bias, "DeloraConfig", r=a.shape[0])
    return called(layer, x, weight, bias, **parameters(a, b, boundary, norms))


@implements("delora.merge", floor, with_norms, gradients=False)
def merge(weight, a, b, boundary, norms=None, *, floor=1e-4):
    """``merge``."""
    layer = around_linear(weight, None, "DeloraConfig", r=a.shape[0])
    return merged(layer, weight, **parameters(a, b, boundary, norms))
