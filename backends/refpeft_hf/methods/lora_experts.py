"""LoRA on the weights of experts as peft has it: on a parameter of three axes, whatever the module does with it."""

import copy
import functools
import warnings

import peft
import torch

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, filled, named


class Experts(torch.nn.Module):
    """Each token by its expert's weight."""

    def __init__(self, shape, dtype, transposed: bool):
        super().__init__()
        self.weight, self.is_transposed = torch.nn.Parameter(torch.zeros(shape, dtype=dtype)), transposed

    def forward(self, x, expert):
        """One product for each token."""
        weight = self.weight[expert]
        return torch.bmm(x[:, None], weight if self.is_transposed else weight.mT)[:, 0]


@functools.lru_cache(maxsize=1024)
def _built(shape, dtype, transposed: bool, rank: int):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(target_parameters=["adapted.weight"], r=rank)
        modules = torch.nn.ModuleDict({"adapted": Experts(shape, dtype, transposed)})
        model = peft.get_peft_model(modules, config, autocast_adapter_dtype=False)
    return model.base_model.model["adapted"].eval().requires_grad_(False)


def layer_of(weight, a, layout, scaling):
    """peft's layer for these shapes."""
    layer = copy.copy(_built(tuple(weight.shape), weight.dtype, layout == "in_out", len(a) // len(weight)))
    layer.scaling = {ADAPTER: scaling}
    return layer


@implements("lora.experts")
def experts(x, expert, weight, a, b, *, scaling, layout="out_in"):
    """``peft.tuners.lora.layer.ParamWrapper``."""
    layer = layer_of(weight, a, layout, scaling)
    tensors = named(layer, weight, None, {"lora_A": a, "lora_B": b})
    return torch.func.functional_call(layer, tensors, (x, expert))


@implements("lora.experts_merge", gradients=False)
def merge(weight, a, b, *, scaling, layout="out_in"):
    """``merge``."""
    layer = filled(layer_of(weight, a, layout, scaling), weight, None, lora_A=a, lora_B=b)
    layer.merge(safe_merge=False)
    return layer.get_base_layer().weight.data
