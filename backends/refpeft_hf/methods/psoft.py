"""PSOFT as peft has it. It refuses to be made around a float64 layer, but can be brought there, as here."""

import torch

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called, merged


def layer_of(weight, a, bias, scaling, variant, terms):
    """peft's layer for these shapes."""
    how = {"use_cayley_neumann": variant == "neumann", "num_cayley_neumann_terms": terms, "r": a.shape[0]}
    made = weight.float() if weight.dtype == torch.float64 else weight
    return around_linear(made, bias, "PsoftConfig", scaling=scaling, **how)


def tensors(a, b, skew, alpha, beta):
    """The rotation's parameters, and the frozen factors, which peft computes from the weight."""
    rotation = {"psoft_R.weight": skew, "psoft_R.vector_a": alpha, "psoft_R.vector_b": beta}
    return rotation | {"_psoft_A_cache": a, "_psoft_B_cache": b}


@implements("psoft.linear")
def linear(x, weight, a, b, skew, alpha, beta, bias=None, *, scaling, variant="paper", terms=5):
    """``peft.tuners.psoft.layer.Linear``."""
    layer = layer_of(weight, a, bias, scaling, variant, terms)
    return called(layer, x, weight, bias, **tensors(a, b, skew, alpha, beta))


@implements("psoft.merge", gradients=False)
def merge(weight, a, b, skew, alpha, beta, *, scaling, variant="paper", terms=5):
    """``merge``."""
    layer = layer_of(weight, a, None, scaling, variant, terms)
    return merged(layer, weight, **tensors(a, b, skew, alpha, beta))
