"""OSF as peft has it: gradients projected by hooks on its parameters.

The problem's weight is the frozen part alone, so that the layer's start of U diag(s) V is zero here. peft keeps H and G where a
side is longer than the other, and takes them from the start where not; here they are always kept.
"""

import copy

import torch

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, around_linear, merged, named


def layer_of(weight, bias, high_u, high_v):
    """A layer of peft's for these shapes, which its hooks ask for the frozen directions when gradients come."""
    layer = copy.deepcopy(around_linear(weight, bias, "OSFConfig", effective_rank=1))
    layer._osf_U_high[ADAPTER], layer._osf_V_high[ADAPTER] = high_u, high_v
    return layer


def tensors(u, s, v):
    """By peft's names: what is trained, and the start."""
    trained = {"osf_svd_params.U_low": u, "osf_svd_params.S_low": s, "osf_svd_params.V_low": v}
    return trained | {
        f"_osf_{name}_low_init": torch.zeros_like(start) for name, start in {"U": u, "S": s, "V": v}.items()
    }


class Hooked(torch.nn.Module):
    """The layer, which hangs its hooks on the tensors that it is called with."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        """``peft.tuners.osf.layer.Linear``."""
        if torch.is_grad_enabled():
            self.layer._attach_hooks(ADAPTER)
        return self.layer(x)


@implements("osf.linear")
def linear(x, weight, u, s, v, high_u, high_v, bias=None):
    """``peft.tuners.osf.layer.Linear``."""
    layer = layer_of(weight, bias, high_u, high_v)
    given = named(layer, weight, bias, tensors(u, s, v))
    return torch.func.functional_call(Hooked(layer), {f"layer.{n}": t for n, t in given.items()}, (x,))


@implements("osf.merge", gradients=False)
def merge(weight, u, s, v):
    """``merge``."""
    return merged(around_linear(weight, None, "OSFConfig", effective_rank=1), weight, **tensors(u, s, v))
