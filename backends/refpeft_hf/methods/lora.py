"""LoRA as peft has it: on linear, embedding and convolution layers, with its merge and its scales.

``lora.scaling`` is what peft works out when a layer is made; everywhere else the problem's scale stands in its place.
"""

import torch

from refpeft_hf.declared import implements, no_mask
from refpeft_hf.layers import ADAPTER, around_convolution, around_linear, built, called, filled, merged


def layer_of(weight, a, bias=None, lora_bias=None, **scaling):
    """peft's layer for these shapes."""
    return around_linear(weight, bias, "LoraConfig", r=a.shape[0], lora_bias=lora_bias is not None, **scaling)


@implements("nn.linear")
def base(x, weight, bias=None):
    """A layer whose adapters are disabled."""
    layer = filled(around_linear(weight, bias, "LoraConfig", r=1), weight, bias)
    layer.enable_adapters(False)
    return called(layer, x, weight, bias)


@implements("lora.linear", no_mask)
def linear(x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep=1.0):
    """``peft.tuners.lora.layer.Linear``."""
    layer = layer_of(weight, a, bias, lora_bias, scaling=scaling)
    return called(
        layer, x, weight, bias, lora_A=a, lora_B=b, **({} if lora_bias is None else {"lora_B.bias": lora_bias})
    )


@implements("lora.embedding")
def embedding(ids, weight, a, b, *, scaling):
    """``peft.tuners.lora.layer.Embedding``."""
    options = (("r", a.shape[0]),)
    layer = built("Embedding", tuple(weight.shape), (), weight.dtype, "LoraConfig", scaling, options)
    return called(layer, ids, weight, None, lora_embedding_A=a, lora_embedding_B=b)


@implements("lora.conv2d", no_mask)
def conv2d(
    x,
    weight,
    a,
    b,
    bias=None,
    lora_bias=None,
    mask=None,
    *,
    scaling,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
    keep=1.0,
):
    """``peft.tuners.lora.layer.Conv2d``."""
    where = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
    options = {"r": a.shape[0], "lora_bias": lora_bias is not None}
    layer = around_convolution(weight, bias, groups, where, "LoraConfig", scaling=scaling, **options)
    return called(
        layer, x, weight, bias, lora_A=a, lora_B=b, **({} if lora_bias is None else {"lora_B.bias": lora_bias})
    )


@implements("lora.conv1d")
def conv1d(x, weight, a, b, bias=None, *, scaling, stride=1, padding=0, dilation=1, groups=1):
    """``peft.tuners.lora.layer.Conv1d``."""
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    layer = around_convolution(weight, bias, groups, where, "LoraConfig", scaling=scaling, r=a.shape[0])
    return called(layer, x, weight, bias, lora_A=a, lora_B=b)


@implements("lora.conv3d")
def conv3d(x, weight, a, b, bias=None, *, scaling, stride=(1, 1, 1), padding=(0, 0, 0), dilation=(1, 1, 1), groups=1):
    """``peft.tuners.lora.layer.Conv3d``."""
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    layer = around_convolution(weight, bias, groups, where, "LoraConfig", scaling=scaling, r=a.shape[0])
    return called(layer, x, weight, bias, lora_A=a, lora_B=b)


@implements("lora.delta", gradients=False)
def delta(a, b, *, scaling):
    """``get_delta_weight``."""
    weight = a.new_zeros(b.shape[0], a.shape[1])
    return filled(layer_of(weight, a, scaling=scaling), weight, None, lora_A=a, lora_B=b).get_delta_weight(ADAPTER)


@implements("lora.merge", gradients=False)
def merge(weight, a, b, *, scaling):
    """``merge``."""
    return merged(layer_of(weight, a, scaling=scaling), weight, lora_A=a, lora_B=b)


@implements("lora.unmerge", gradients=False)
def unmerge(merged, a, b, *, scaling):
    """``unmerge`` of a layer that was merged, and whose weight is the one given."""
    layer = filled(layer_of(merged, a, scaling=scaling), merged, None, lora_A=a, lora_B=b)
    layer.merge()
    layer.get_base_layer().weight.data = merged.detach().clone()
    layer.unmerge()
    return layer.get_base_layer().weight.data


@implements("lora.scaling", gradients=False)
def scaling(alpha, *, rank, variant):
    """What the layer keeps as its scale."""
    options = (("lora_alpha", alpha.item()), ("r", int(rank)), ("use_rslora", variant == "rslora"))
    layer = built.__wrapped__("Linear", (1, 1), (), alpha.dtype, "LoraConfig", None, options)
    return torch.tensor(layer.scaling[ADAPTER], dtype=alpha.dtype)
