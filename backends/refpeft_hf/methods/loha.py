"""LoHa as peft has it: the gradient of the Hadamard product is written by hand there, too."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_convolution, around_linear, called, merged


def factors(w1_a, w1_b, w2_a, w2_b):
    """The layer's parameters."""
    return {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b}


@implements("loha.linear")
def linear(x, weight, w1_a, w1_b, w2_a, w2_b, bias=None, *, scaling):
    """``peft.tuners.loha.layer.Linear``."""
    layer = around_linear(weight, bias, "LoHaConfig", r=w1_b.shape[0], scaling=scaling)
    return called(layer, x, weight, bias, **factors(w1_a, w1_b, w2_a, w2_b))


@implements("loha.merge", gradients=False)
def merge(weight, w1_a, w1_b, w2_a, w2_b, *, scaling):
    """``merge``."""
    layer = around_linear(weight, None, "LoHaConfig", r=w1_b.shape[0], scaling=scaling)
    return merged(layer, weight, **factors(w1_a, w1_b, w2_a, w2_b))


@implements("loha.conv2d")
def conv2d(
    x, weight, w1_a, w1_b, w2_a, w2_b, bias=None, *, scaling, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1
):
    """``peft.tuners.loha.layer.Conv2d``."""
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    layer = around_convolution(weight, bias, groups, where, "LoHaConfig", r=w1_b.shape[0], scaling=scaling)
    return called(layer, x, weight, bias, **factors(w1_a, w1_b, w2_a, w2_b))
