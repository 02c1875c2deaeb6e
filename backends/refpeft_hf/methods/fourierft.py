"""FourierFT as peft has it: places drawn from a seed and not kept with the parameters, here those of the problem."""

import torch

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, around_linear, called, merged


def layer_of(weight, values, places, bias, scaling):
    """peft's layer for these shapes, with the problem's places and scaling."""
    layer = around_linear(weight, bias, "FourierFTConfig", n_frequency=values.shape[0])
    layer.indices[ADAPTER] = torch.stack([places // weight.shape[1], places % weight.shape[1]])
    layer.fourierft_scaling[ADAPTER] = scaling
    return layer


@implements("fourierft.linear")
def linear(x, weight, values, places, bias=None, *, scaling):
    """``peft.tuners.fourierft.layer.FourierFTLinear``."""
    layer = layer_of(weight, values, places, bias, scaling)
    return called(layer, x, weight, bias, fourierft_spectrum=values)


@implements("fourierft.merge", gradients=False)
def merge(weight, values, places, *, scaling):
    """``merge``."""
    layer = layer_of(weight, values, places, None, scaling)
    return merged(layer, weight, fourierft_spectrum=values)
