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


def tucker_factors(core1, w1_a, w1_b, core2, w2_a, w2_b):
    """The parameters that a layer with ``use_effective_conv2d`` has."""
    return {"hada_t1": core1, "hada_t2": core2} | factors(w1_a, w1_b, w2_a, w2_b)


def larger(shapes, attributes):
    """Than one point."""
    return "peft has no cores where the kernel is 1 x 1" if shapes["core1"][2:] == (1, 1) else ""


@implements("loha_core.conv2d", larger)
def core(x, weight, core1, w1_a, w1_b, core2, w2_a, w2_b, bias=None, *, scaling, groups=1, **where):
    """``peft.tuners.loha.layer.Conv2d`` with ``use_effective_conv2d``."""
    options = {"r": len(core1), "use_effective_conv2d": True}
    layer = around_convolution(weight, bias, groups, where, "LoHaConfig", scaling=scaling, **options)
    return called(layer, x, weight, bias, **tucker_factors(core1, w1_a, w1_b, core2, w2_a, w2_b))


@implements("loha_core.merge", larger, gradients=False)
def core_merge(weight, core1, w1_a, w1_b, core2, w2_a, w2_b, *, scaling):
    """``merge`` of a convolution, its kernel a matrix here."""
    kernel = weight.reshape(len(weight), -1, *core1.shape[2:])
    options = {"r": len(core1), "use_effective_conv2d": True}
    layer = around_convolution(kernel, None, 1, {}, "LoHaConfig", scaling=scaling, **options)
    tensors = tucker_factors(core1, w1_a, w1_b, core2, w2_a, w2_b)
    return merged(layer, kernel, **tensors).reshape(weight.shape)
