"""DVoRA as AdapterHub has it: VeRA's matrices, of which the problem's vectors are the diagonals, under DoRA's magnitude."""

from refpeft_hf.adapterhub import dora, vera
from refpeft_hf.adapterhub.lora import layer_of, named, no_mask
from refpeft_hf.adapterhub_layers import called, merged
from refpeft_hf.declared import implements


def tensors_of(lambda_d, lambda_b, magnitude):
    """The adapter's tensors by name."""
    return vera.tensors_of(lambda_d, lambda_b) | named(**{"m.weight": magnitude.unsqueeze(1)})


@implements("dvora.linear", no_mask, dora.full)
def linear(x, weight, a, b, lambda_d, lambda_b, magnitude, bias=None, mask=None, *, keep=1.0, norm="detached"):
    """``LoRALinear`` with ``Vera`` and ``compute_dora_deltaw``."""
    layer = layer_of(weight, bias, 1, "DvoRAConfig", r=len(a))
    return called(layer, x, weight, bias, tensors_of(lambda_d, lambda_b, magnitude), **vera.shared(a, b))


@implements("dvora.merge", gradients=False)
def merge(weight, a, b, lambda_d, lambda_b, magnitude, *, norm="detached"):
    """``merge_adapter``."""
    layer = layer_of(weight, None, 1, "DvoRAConfig", r=len(a))
    return merged(layer, weight, tensors_of(lambda_d, lambda_b, magnitude), **vera.shared(a, b))
