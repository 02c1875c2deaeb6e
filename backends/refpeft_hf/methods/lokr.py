"""LoKr as peft has it: dense, low-rank and Tucker factors.

peft divides the sides of a weight by a rule of its own. Here its layer gets the problem's factors, whatever their sides; how it
makes the update of them is its own.
"""

import functools

import torch

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, around_convolution, around_linear, called, merged


def with_factors(layer, names):
    """The layer with parameters of these names; their shapes are those of what they are called with."""
    return _with_factors(layer, tuple(sorted(names)))


@functools.lru_cache(maxsize=1024)
def _with_factors(layer, names: tuple):
    for attribute in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"):
        getattr(layer, f"lokr_{attribute}").clear()
    for name in names:
        getattr(layer, name)[ADAPTER] = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    return layer


def linear_of(x, weight, bias, scaling, **factors):
    """``peft.tuners.lokr.layer.Linear``."""
    layer = around_linear(weight, bias, "LoKrConfig", scaling=scaling, r=1)
    return called(with_factors(layer, factors), x, weight, bias, **factors)


def merge_of(weight, scaling, **factors):
    """``merge``."""
    layer = around_linear(weight, None, "LoKrConfig", scaling=scaling, r=1)
    return merged(with_factors(layer, factors), weight, **factors)


def conv2d_of(x, weight, bias, scaling, where, groups, **factors):
    """``peft.tuners.lokr.layer.Conv2d``."""
    layer = around_convolution(weight, bias, groups, where, "LoKrConfig", scaling=scaling, r=1)
    return called(with_factors(layer, factors), x, weight, bias, **factors)


@implements("lokr_dense.linear")
def dense(x, weight, w1, w2, bias=None, *, scaling):
    """Both factors dense."""
    return linear_of(x, weight, bias, scaling, lokr_w1=w1, lokr_w2=w2)


@implements("lokr_dense.merge", gradients=False)
def dense_merge(weight, w1, w2, *, scaling):
    """Both factors dense."""
    return merge_of(weight, scaling, lokr_w1=w1, lokr_w2=w2)


@implements("lokr.linear")
def linear(x, weight, w1, w2_a, w2_b, bias=None, *, scaling):
    """The second factor of low rank."""
    return linear_of(x, weight, bias, scaling, lokr_w1=w1, lokr_w2_a=w2_a, lokr_w2_b=w2_b)


@implements("lokr.merge", gradients=False)
def merge(weight, w1, w2_a, w2_b, *, scaling):
    """The second factor of low rank."""
    return merge_of(weight, scaling, lokr_w1=w1, lokr_w2_a=w2_a, lokr_w2_b=w2_b)


@implements("lokr_both.linear")
def both(x, weight, w1_a, w1_b, w2_a, w2_b, bias=None, *, scaling):
    """Both factors of low rank."""
    return linear_of(x, weight, bias, scaling, lokr_w1_a=w1_a, lokr_w1_b=w1_b, lokr_w2_a=w2_a, lokr_w2_b=w2_b)


@implements("lokr_both.merge", gradients=False)
def both_merge(weight, w1_a, w1_b, w2_a, w2_b, *, scaling):
    """Both factors of low rank."""
    return merge_of(weight, scaling, lokr_w1_a=w1_a, lokr_w1_b=w1_b, lokr_w2_a=w2_a, lokr_w2_b=w2_b)


@implements("lokr.conv2d")
def conv2d(x, weight, w1, w2_a, w2_b, bias=None, *, scaling, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """The kernel's rows and columns flattened into the second factor."""
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    return conv2d_of(x, weight, bias, scaling, where, groups, lokr_w1=w1, lokr_w2_a=w2_a, lokr_w2_b=w2_b)


@implements("lokr_core.conv2d")
def core(
    x, weight, w1, core, w2_a, w2_b, bias=None, *, scaling, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1
):
    """The second factor in Tucker form, a core per position of the kernel."""
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    factors = {"lokr_w1": w1, "lokr_t2": core, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b}
    return conv2d_of(x, weight, bias, scaling, where, groups, **factors)


@implements("lokr_core.merge", gradients=False)
def core_merge(weight, w1, core, w2_a, w2_b, *, scaling):
    """``merge`` of a convolution, its kernel a matrix here."""
    kernel = weight.reshape(len(weight), -1, *core.shape[2:])
    layer = around_convolution(kernel, None, 1, {}, "LoKrConfig", scaling=scaling, r=1)
    factors = {"lokr_w1": w1, "lokr_t2": core, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b}
    return merged(with_factors(layer, factors), kernel, **factors).reshape(weight.shape)
