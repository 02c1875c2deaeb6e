"""C3A as peft has it: through the frequency domain, in float32, with a gradient written by hand."""

from refpeft_hf.declared import implements, only
from refpeft_hf.layers import around_linear, called, merged

divided = only("normalised", True, "peft's C3A divides by the number of inputs")


@implements("c3a.linear_fft", divided)
def linear(x, weight, kernel, bias=None, *, normalised=False):
    """``peft.tuners.c3a.layer.C3ALinear``."""
    layer = around_linear(weight, bias, "C3AConfig", block_size=kernel.shape[2])
    return called(layer, x, weight, bias, c3a_kernel=kernel)


@implements("c3a.merge_fft", divided, gradients=False)
def merge(weight, kernel, *, normalised=False):
    """``merge``."""
    layer = around_linear(weight, None, "C3AConfig", block_size=kernel.shape[2])
    return merged(layer, weight, c3a_kernel=kernel)
