"""A batch of several adapters as peft has it: an adapter's name for each sequence."""

import torch

from refpeft_hf.declared import implements
from refpeft_hf.layers import several


@implements("lora.batched")
def batched(x, adapter, weight, a, b, scaling, bias=None):
    """``peft.tuners.lora.layer.Linear`` with ``adapter_names``."""
    layer, tensors = several(weight, bias, a, b)
    layer.scaling = {str(k): scale for k, scale in enumerate(scaling)}
    names = [str(k) for k in adapter.tolist()]
    return torch.func.functional_call(layer, tensors, (x,), {"adapter_names": names})
