"""FRoD as peft has it: V and the places of S belong to the model, and are the layer's here.

Its merge adds the difference to the base weight, of which nothing is left: zero here.
"""

import torch

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, around_linear, called, merged


def layer_of(weight, v, places, bias):
    """peft's layer for these shapes, with the problem's basis and places."""
    i = len(v)
    layer = around_linear(weight, bias, "FrodConfig", progressbar=False)
    indices, size = torch.stack([places // i, places % i]), torch.tensor([i, i])
    layer._set_shared_projection_buffers({ADAPTER: v}, {ADAPTER: indices}, {ADAPTER: size})
    return layer


@implements("frod.linear")
def linear(x, u, v, diagonal, sparse, places, bias=None):
    """``peft.tuners.frod.layer.Linear``."""
    weight = u.new_zeros(u.shape)
    tensors = {"frod_U": u, "frod_lambda_l": diagonal, "frod_lambda_s_values": sparse}
    return called(layer_of(weight, v, places, bias), x, weight, bias, **tensors)


@implements("frod.merge", gradients=False)
def merge(u, v, diagonal, sparse, places):
    """``merge``."""
    weight = u.new_zeros(u.shape)
    tensors = {"frod_U": u, "frod_lambda_l": diagonal, "frod_lambda_s_values": sparse}
    return merged(layer_of(weight, v, places, None), weight, **tensors)
