"""LoRA as AdapterHub has it, with its merge. The problem's scale stands in the place of the adapter's own."""

import adapters
import torch
from adapters.composition import MultiTask
from adapters.methods.lora import LoRA

from refpeft_hf.adapterhub_layers import ADAPTER, around_linear, called, merged, several, unmerged
from refpeft_hf.declared import implements, only, without

no_mask = without("mask", "adapters draws its dropout itself and takes no mask")


def layer_of(weight, bias, scaling, config="LoRAConfig", **options):
    """AdapterHub's layer for these shapes, its adapter's scale set."""
    layer = around_linear(*weight.shape, bias is not None, weight.dtype, config, tuple(sorted(options.items())))
    layer.loras[ADAPTER].scaling = scaling
    return layer


def named(**tensors):
    """The adapter's tensors by name."""
    return {f"loras.{ADAPTER}.{name}": tensor for name, tensor in tensors.items()}


@implements("nn.linear")
def base(x, weight, bias=None):
    """A layer without an adapter."""
    return called(
        around_linear(*weight.shape, bias is not None, weight.dtype, "LoRAConfig", (), ()), x, weight, bias, {}
    )


@implements("lora.linear", no_mask, without("lora_bias", "adapters' LoRA has no bias"))
def linear(x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep=1.0):
    """``LoRALinear`` with ``LoRA``."""
    layer = layer_of(weight, bias, scaling, r=a.shape[0])
    return called(layer, x, weight, bias, named(lora_A=a, lora_B=b))


@implements("lora.delta")
def delta(a, b, *, scaling):
    """``delta_w`` on a weight of zeros."""
    module = LoRA((1, 1), (1, 1), adapters.LoRAConfig())
    module.scaling, module._parameters["lora_A"], module._parameters["lora_B"] = scaling, a, b
    return module.com(a.new_zeros(b.shape[0], a.shape[1]), module.delta_w)


@implements("lora.merge", gradients=False)
def merge(weight, a, b, *, scaling):
    """``merge_adapter``."""
    return merged(layer_of(weight, None, scaling, r=a.shape[0]), weight, named(lora_A=a, lora_B=b))


@implements("lora.unmerge", gradients=False)
def unmerge(merged, a, b, *, scaling):
    """``reset_adapter``."""
    return unmerged(layer_of(merged, None, scaling, r=a.shape[0]), merged, named(lora_A=a, lora_B=b))


@implements("lora.scaling", only("variant", "lora", "adapters has no rank-stabilised scale"), gradients=False)
def scaling(alpha, *, rank, variant="lora"):
    """What the adapter keeps as its scale."""
    module = LoRA((1, 1), (1, 1), adapters.LoRAConfig(r=int(rank), alpha=alpha.item()))
    return torch.tensor(module.scaling, dtype=alpha.dtype)


@implements("lora.batched")
def batched(x, adapter, weight, a, b, scaling, bias=None):
    """``MultiTask``, which sorts the batch by the adapter and splits it."""
    layer, tensors = several(weight, bias, a, b, MultiTask)
    for lora, own in zip(layer.loras.values(), scaling):
        lora.scaling = own
    return called(layer, x, weight, bias, tensors, task_ids=adapter)
