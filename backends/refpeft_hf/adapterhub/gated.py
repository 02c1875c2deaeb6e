"""UniPELT's gated layers as AdapterHub has them, on one axis of batch. Where a gate has no bias, it is zero."""

import functools

import adapters
import torch
from adapters.methods.modeling import Adapter, ParallelAdapter
from adapters.methods.prefix_tuning import PrefixTuningLayer

from refpeft_hf.adapterhub.bottleneck import ACTIVATIONS
from refpeft_hf.adapterhub.bottleneck import named as of_adapter
from refpeft_hf.adapterhub.lora import layer_of, named, no_mask
from refpeft_hf.adapterhub.prompts import PLACE, attended, some
from refpeft_hf.adapterhub_layers import ADAPTER, called, known
from refpeft_hf.declared import implements
from refpeft_hf.layers import one_batch


def of_gate(gate, gate_bias):
    """The gate's tensors by name."""
    return {"gate.weight": gate, "gate.bias": gate.new_zeros(len(gate)) if gate_bias is None else gate_bias}


@implements("unipelt.linear", no_mask)
def linear(x, weight, a, b, gate, gate_bias=None, bias=None, mask=None, *, keep=1.0):
    """``LoRALinear`` with ``use_gating``."""
    layer = layer_of(weight, bias, 1, r=a.shape[0], use_gating=True)
    tensors = named(lora_A=a, lora_B=b, **of_gate(gate, gate_bias))
    y = called(layer, one_batch(x, 2), weight, bias, tensors)
    return y.reshape(*x.shape[:-1], len(weight))


@functools.lru_cache(maxsize=64)
def adapter(kind, activation, scaling):
    """A sequential or a parallel adapter with a gate; its sizes are those of the tensors that it is called with."""
    how = adapters.ParBnConfig(non_linearity=ACTIVATIONS[activation], scaling=scaling, use_gating=True)
    return kind(ADAPTER, 1, 1, how).eval().requires_grad_(False)


@implements("unipelt.bottleneck")
def bottleneck(
    x,
    down,
    up,
    gate,
    residual=None,
    down_bias=None,
    up_bias=None,
    gate_bias=None,
    *,
    activation="relu",
    scaling=1.0,
):
    """``Adapter`` or, without a residual, ``ParallelAdapter``."""
    module = adapter(ParallelAdapter if residual is None else Adapter, activation, scaling)
    tensors = of_adapter(down, up, down_bias, up_bias) | of_gate(gate, gate_bias)
    given = (one_batch(x, 2), None if residual is None else one_batch(residual, 2))
    y = torch.func.functional_call(module, tensors, given)[0]
    return y.reshape(*x.shape[:-1], len(up))


@functools.lru_cache(maxsize=8)
def in_attention(gates: int):
    """The layer that gates a prefix and puts it before the keys and values of one attention layer."""
    layer = PrefixTuningLayer(PLACE, None, known(adapters.PrefixTuningConfig(use_gating=True)))
    layer.prefixes[ADAPTER], layer.layer_idx = 0, 0
    layer.prefix_gates[ADAPTER] = torch.nn.Linear(1, gates)
    return layer.eval().requires_grad_(False)


@implements("unipelt.attention", some("prefix_k", 1))
def attention(q, k, v, prefix_k, prefix_v, hidden, gate, gate_bias=None, mask=None, *, causal=False, offset=0):
    """``PrefixTuningLayer`` with gates."""
    tensors = {f"prefix_gates.{ADAPTER}.{n.partition('.')[2]}": t for n, t in of_gate(gate, gate_bias).items()}

    def layer(k, v, seen):
        return torch.func.functional_call(in_attention(len(gate)), tensors, (k, v, one_batch(hidden, 2), seen))

    return attended(layer, q, k, v, prefix_k, prefix_v, mask, causal, offset)
