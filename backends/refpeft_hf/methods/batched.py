"""A batch of several adapters as peft has it: an adapter's name for each sequence."""

import torch

from refpeft_hf.declared import implements
from refpeft_hf.layers import several


@implements("lora.batched")
def batched(x, adapter, weight, a, b, scaling, bias=None):
    """``peft.tuners.lora.layer.Linear`` with ``adapter_names``."""
    layer = several(weight, bias, a.shape[1], a.shape[0])
    layer.scaling = {str(k): scale for k, scale in enumerate(scaling)}
    tensors = {"base_layer.weight": weight} | ({} if bias is None else {"base_layer.bias": bias})
    for k in range(len(a)):
        tensors |= {f"lora_A.{k}.weight": a[k], f"lora_B.{k}.weight": b[k]}
    names = [str(k) for k in adapter.tolist()]
    return torch.func.functional_call(layer, tensors, (x,), {"adapter_names": names})
