"""Invertible adapters as AdapterHub has them, on one axis of batch and one of tokens. Where no bias is given, it is zero."""

import functools

import torch
from adapters.methods.modeling import NICECouplingBlock

from refpeft_hf.adapterhub.bottleneck import ACTIVATIONS
from refpeft_hf.declared import implements
from refpeft_hf.layers import one_batch


@functools.lru_cache(maxsize=64)
def block(d: int, activation: str):
    """The block for so many features; the widths of its networks are those of the tensors that it is called with."""
    return NICECouplingBlock([[d]], non_linearity=ACTIVATIONS[activation]).eval().requires_grad_(False)


@implements("nice.couple")
def couple(
    x,
    f_down,
    f_up,
    g_down,
    g_up,
    f_down_bias=None,
    f_up_bias=None,
    g_down_bias=None,
    g_up_bias=None,
    *,
    activation="relu",
    inverse=False,
):
    """``NICECouplingBlock``, there or back."""
    tensors = {}
    for network, *layers in (
        ("F", (f_down, f_down_bias), (f_up, f_up_bias)),
        ("G", (g_down, g_down_bias), (g_up, g_up_bias)),
    ):
        for place, (weight, bias) in zip((0, 2), layers):
            tensors[f"{network}.{place}.weight"] = weight
            tensors[f"{network}.{place}.bias"] = weight.new_zeros(len(weight)) if bias is None else bias
    given = one_batch(x, 1).unsqueeze(0)
    return torch.func.functional_call(block(x.shape[-1], activation), tensors, (given,), {"rev": inverse}).reshape(
        x.shape
    )
