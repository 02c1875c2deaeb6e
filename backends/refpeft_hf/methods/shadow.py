"""Shadow as peft has it: what its layer does before and behind a block."""

import functools

import peft
import torch
from peft.tuners.shadow.layers import ShadowLayer

from refpeft_hf.declared import implements, no_mask
from refpeft_hf.layers import ADAPTER


@functools.lru_cache(maxsize=256)
def layer_of(d, r, width, dtype):
    """peft's layer around a block that does nothing."""
    how = peft.ShadowConfig(r=r, update_hidden_size=width)
    return ShadowLayer(torch.nn.Identity(), ADAPTER, how, hidden_size=d).to(dtype).eval().requires_grad_(False)


class Step(torch.nn.Module):
    """One of the layer's methods as a forward."""

    def __init__(self, layer, method):
        super().__init__()
        self.layer, self.method = layer, method

    def forward(self, x, shadow):
        """The adapter's."""
        return getattr(self.layer, self.method)(x, shadow, ADAPTER)


def stepped(method, layer, x, shadow, **tensors):
    """The method with these tensors."""
    named = {f"layer.{n.replace('.', f'.{ADAPTER}.', 1)}": t for n, t in tensors.items()}
    return torch.func.functional_call(Step(layer, method), named, (x, shadow))


@implements("shadow.inject", no_mask)
def inject(x, shadow, down, up, mask=None, *, scaling, keep=1.0):
    """``shadow_inject``."""
    layer = layer_of(down.shape[1], len(down), 1, x.dtype)
    layer.shadow_alpha[ADAPTER] = scaling
    return stepped("shadow_inject", layer, x, shadow, **{"shadow_down.weight": down, "shadow_up.weight": up})


@implements("shadow.update")
def update(
    x,
    shadow,
    candidate_down,
    candidate_down_bias,
    candidate_up,
    candidate_up_bias,
    gate_down,
    gate_down_bias,
    gate_up,
    gate_up_bias,
):
    """``shadow_update``."""
    m, d = candidate_down.shape
    candidate = (candidate_down, candidate_down_bias, candidate_up, candidate_up_bias)
    networks = {"transform": candidate, "gate": (gate_down, gate_down_bias, gate_up, gate_up_bias)}
    places = ("0.weight", "0.bias", "2.weight", "2.bias")
    tensors = {f"shadow_update_{n}.{at}": t for n, network in networks.items() for at, t in zip(places, network)}
    return stepped("shadow_update", layer_of(d, 1, m, x.dtype), x, shadow, **tensors)
