"""AdaLoRA as peft has it. Its scale is alpha / (ranknum + 1e-5); ``ranknum`` is given such that the problem's stands there."""

from types import SimpleNamespace

import torch
from peft.tuners.adalora.layer import RankAllocator
from peft.tuners.adalora.model import AdaLoraModel

from refpeft_hf.declared import implements, no_mask, only
from refpeft_hf.layers import ADAPTER, around_linear, called, merged


def layer_of(weight, a, bias, scaling):
    """peft's layer for these shapes."""
    how = {"init_r": a.shape[0], "target_r": 1, "total_step": 10}
    return around_linear(weight, bias, "AdaLoraConfig", scaling=scaling, **how)


def triplets(a, e, b):
    """The layer's parameters, ``ranknum`` such that the quotient divides by one."""
    ranknum = torch.ones(1, dtype=a.dtype, device=a.device) - 1e-5
    return {"lora_A": a, "lora_E": e.unsqueeze(1), "lora_B": b, "ranknum": ranknum}


@implements("adalora.importance", gradients=False)
def importance(p, grad, smoothed, spread, *, beta1=0.85, beta2=0.85):
    """``peft.tuners.adalora.layer.RankAllocator``: ``update_ipt`` of one tensor, and its score."""
    name = f"lora_A.{ADAPTER}"
    allocator = RankAllocator.__new__(RankAllocator)
    allocator.adapter_name, allocator.beta1, allocator.beta2 = ADAPTER, beta1, beta2
    allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc = {name: None}, {name: smoothed}, {name: spread}
    tensor = torch.nn.Parameter(p)
    tensor.grad = grad
    allocator.update_ipt(SimpleNamespace(named_parameters=lambda: [(name, tensor)]))
    return allocator.exp_avg_ipt[name], allocator.exp_avg_unc[name], allocator._element_score(name)


@implements("adalora.linear", no_mask)
def linear(x, weight, a, e, b, bias=None, mask=None, *, scaling, keep=1.0):
    """``peft.tuners.adalora.layer.SVDLinear``."""
    return called(layer_of(weight, a, bias, scaling), x, weight, bias, **triplets(a, e, b))


@implements("adalora.merge", gradients=False)
def merge(weight, a, e, b, *, scaling):
    """``merge``."""
    return merged(layer_of(weight, a, None, scaling), weight, **triplets(a, e, b))


@implements("adalora.orthogonality", only("variant", "norm", "peft's penalty is of norms, not of their squares"))
def orthogonality(a, b, *, variant="norm"):
    """What ``AdaLoraModel.forward`` adds to the loss of a model with one such layer."""
    outputs, factors = SimpleNamespace(loss=a.new_zeros(())), {f"lora_A.{ADAPTER}": a, f"lora_B.{ADAPTER}": b}
    inner = SimpleNamespace(forward=lambda: outputs, named_parameters=factors.items)
    how = {ADAPTER: SimpleNamespace(orth_reg_weight=1.0)}
    around = SimpleNamespace(model=inner, trainable_adapter_name=ADAPTER, peft_config=how)
    return AdaLoraModel.forward(around).loss
