"""Compacter's layers as AdapterHub has them, each with rules of its own."""

import functools

import adapters
import torch
from adapters.methods.modeling import PHMLayer

from refpeft_hf.adapterhub_layers import ADAPTER
from refpeft_hf.declared import implements


@functools.lru_cache(maxsize=64)
def layer_of(m: int, factorised: bool, bias: bool):
    """The layer of m products; its sizes are those of the tensors that it is called with."""
    how = adapters.CompacterConfig(
        phm_dim=m, factorized_phm_W=factorised, shared_phm_rule=False, shared_W_phm=False, phm_bias=bias
    )
    return PHMLayer(ADAPTER, m, m, "down", how).eval().requires_grad_(False)


def called(x, rule, bias, **weights):
    """The layer's forward with all its tensors given."""
    tensors = {"phm_rule": rule, **weights} | ({} if bias is None else {"b": bias})
    layer = layer_of(len(rule), "W_left" in weights, bias is not None)
    return torch.func.functional_call(layer, tensors, (x,))


@implements("compacter.phm")
def phm(x, rule, weights, bias=None):
    """``PHMLayer`` with whole matrices."""
    return called(x, rule, bias, W=weights)


@implements("compacter.linear")
def linear(x, rule, left, right, bias=None):
    """``PHMLayer`` with matrices of low rank."""
    return called(x, rule, bias, W_left=left, W_right=right)
