"""Bottleneck adapters as AdapterHub has them: alone, and in the layer of a model where they sit.

The adapter's matrices may have any shapes here; a model's are as wide as it is. Where no bias is given, it is zero.
"""

import functools

import adapters
import torch
from adapters.methods.modeling import Adapter, ParallelAdapter

from refpeft_hf.adapterhub_layers import ADAPTER, around_sublayer, forward_pass
from refpeft_hf.declared import implements

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "swish", "tanh": "tanh"}
PLACEMENTS = {"houlsby": "DoubleSeqBnConfig", "pfeiffer": "SeqBnConfig", "parallel": "ParBnConfig"}


def one_scale(shapes, attributes):
    """Learned, or fixed."""
    return "adapters learns a scaling or has a fixed one" if "gain" in shapes and attributes["scaling"] != 1 else ""


@functools.lru_cache(maxsize=64)
def adapter(kind, activation, scaling):
    """A sequential or a parallel adapter; its sizes are those of the tensors that it is called with."""
    how = adapters.ParBnConfig(non_linearity=ACTIVATIONS[activation], scaling=scaling)
    return kind(ADAPTER, 1, 1, how).eval().requires_grad_(False)


def named(down, up, down_bias, up_bias):
    """The adapter's tensors by name."""
    return {
        "adapter_down.0.weight": down,
        "adapter_down.0.bias": down.new_zeros(down.shape[0]) if down_bias is None else down_bias,
        "adapter_up.weight": up,
        "adapter_up.bias": up.new_zeros(up.shape[0]) if up_bias is None else up_bias,
    }


@implements("adapter.bottleneck", one_scale)
def bottleneck(
    x, down, up, residual=None, down_bias=None, up_bias=None, gain=None, *, activation="relu", scaling=1.0, per="layer"
):
    """``Adapter``, which adds its residual, or ``ParallelAdapter``, which leaves that to its layer."""
    kind = ParallelAdapter if residual is None else Adapter
    module = adapter(kind, activation, scaling if gain is None else {"layer": "learned"}.get(per, per))
    tensors = named(down, up, down_bias, up_bias) | ({} if gain is None else {"scaling": gain})
    return torch.func.functional_call(module, tensors, (x, residual))[0]


@implements("adapter.sublayer")
def sublayer(
    x,
    hidden,
    down,
    up,
    weight,
    bias,
    down_bias=None,
    up_bias=None,
    *,
    placement="houlsby",
    activation="relu",
    scaling=1.0,
    eps=1e-5,
):
    """``BottleneckLayer`` with the layer norm of its model."""
    options = (("non_linearity", ACTIVATIONS[activation]), ("scaling", scaling), ("reduction_factor", 1))
    layer = around_sublayer(PLACEMENTS[placement], x.shape[-1], options)
    tensors = {f"adapters.{ADAPTER}.{n}": t for n, t in named(down, up, down_bias, up_bias).items()}

    def layer_norm(z):
        return torch.nn.functional.layer_norm(z, weight.shape, weight, bias, eps)

    with forward_pass():
        return torch.func.functional_call(layer, tensors, (hidden, x, layer_norm))
