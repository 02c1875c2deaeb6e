"""AdaMSS as peft has it, made without its clustering, which needs scikit-learn: the problem says which rows are together."""

import torch
from peft.tuners.adamss.layer import AdamssLayer, Linear

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, called, merged


def layer_of(weight, groups, group, bias):
    """peft's layer, its rows sorted by their group."""
    layer = Linear.__new__(Linear)
    torch.nn.Module.__init__(layer)
    o, i = weight.shape
    AdamssLayer.__init__(layer, torch.nn.Linear(i, o, bias=bias is not None, dtype=weight.dtype))
    layer._active_adapter, layer.dtype = ADAPTER, weight.dtype
    layer.num_subspaces[ADAPTER], layer.scatter_index[ADAPTER] = groups, torch.argsort(group, stable=True)
    for parts in (layer.adamss_A, layer.adamss_B):
        parts[ADAPTER] = torch.nn.ParameterList(torch.empty(0, dtype=weight.dtype) for _ in range(groups))
    layer.adamss_newB[ADAPTER] = torch.empty(0, dtype=weight.dtype)
    return layer.requires_grad_(False)


def tensors(basis, inner, outer, group, bias):
    """By peft's names, a pair for each group; with a bias the basis has a column for it, zero here."""
    basis = basis if bias is None else torch.nn.functional.pad(basis, (0, 1))
    maps = {f"adamss_A.{g}": a for g, a in enumerate(inner)}
    return {"adamss_newB": basis} | maps | {f"adamss_B.{g}": outer[group == g] for g in range(len(inner))}


@implements("adamss.linear")
def linear(x, weight, basis, inner, outer, group, bias=None):
    """``peft.tuners.adamss.layer.Linear``."""
    layer = layer_of(weight, len(inner), group, bias)
    return called(layer, x, weight, bias, **tensors(basis, inner, outer, group, bias))


@implements("adamss.merge", gradients=False)
def merge(weight, basis, inner, outer, group):
    """``merge``."""
    layer = layer_of(weight, len(inner), group, None)
    return merged(layer, weight, **tensors(basis, inner, outer, group, None))
