"""WaveFT as peft has it: places drawn from a seed and not kept with the parameters, here those of the problem."""

import torch

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, around_linear, called, merged


def layer_of(weight, values, places, bias, scaling, wavelet):
    """peft's layer for these shapes, with the problem's places and scaling."""
    layer = around_linear(weight, bias, "WaveFTConfig", n_frequency=values.shape[0], wavelet_family=wavelet)
    layer.waveft_indices[ADAPTER] = torch.stack([places // weight.shape[1], places % weight.shape[1]])
    layer.waveft_scaling[ADAPTER] = scaling
    return layer


@implements("waveft.linear")
def linear(x, weight, values, places, bias=None, *, scaling, wavelet="db1"):
    """``peft.tuners.waveft.layer.WaveFTLinear``."""
    layer = layer_of(weight, values, places, bias, scaling, wavelet)
    return called(layer, x, weight, bias, waveft_spectrum=values)


@implements("waveft.merge", gradients=False)
def merge(weight, values, places, *, scaling, wavelet="db1"):
    """``merge``."""
    layer = layer_of(weight, values, places, None, scaling, wavelet)
    return merged(layer, weight, waveft_spectrum=values)
