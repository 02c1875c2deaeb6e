"""AdapterHub's layers around torch's, built as its models build them, with a problem's tensors in place of their parameters."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import adapters
import torch
from adapters.composition import AdapterCompositionBlock, Stack
from adapters.configuration import ModelAdaptersConfig
from adapters.context import ForwardContext
from adapters.methods.bottleneck import BottleneckLayer
from adapters.methods.lora import LoRALinear

ADAPTER = "adapter"


def known(config, names=(ADAPTER,), setup: AdapterCompositionBlock | None = None) -> ModelAdaptersConfig:
    """What a model knows of its adapters: these names, all of one configuration, and how the active ones compose."""
    table = ModelAdaptersConfig()
    for name in names:
        table.add(name, config=config)
    table.active_setup = setup or Stack(*names)
    return table


@functools.lru_cache(maxsize=1024)
def around_linear(o: int, i: int, bias: bool, dtype, config: str, options: tuple = (), names=(ADAPTER,), setup=Stack):
    """AdapterHub's layer in the place of ``torch.nn.Linear``; kept, since every call brings all tensors that it computes with.

    Parameters
    ----------
    o, i : int
    bias : bool
    dtype : torch.dtype
    config : str
        Name of AdapterHub's configuration; ``options`` are its arguments.
    names : tuple of str
    setup : type
        How the adapters compose.
    """
    base = torch.nn.Linear(i, o, bias=bias, dtype=dtype)
    how = getattr(adapters, config)(**dict(options))
    layer = LoRALinear.wrap(base, "selfattn", None, known(how, names, setup(*names)), attn_key="q")
    for name in names:
        layer.add_adapter(name, 0)
    return layer.eval().requires_grad_(False)


def several(weight, bias, a, b, setup: type):
    """The layer with a LoRA adapter for each of a (k, r, i), named by its number, and their tensors by name."""
    names, options = tuple(map(str, range(len(a)))), (("r", a.shape[1]),)
    layer = around_linear(*weight.shape, bias is not None, weight.dtype, "LoRAConfig", options, names, setup)
    factors = {"lora_A": a, "lora_B": b}
    return layer, {f"loras.{k}.{name}": tensor for name, stack in factors.items() for k, tensor in zip(names, stack)}


def called(layer, x, weight, bias, tensors: dict, **context):
    """The layer's forward at ``x`` with all its tensors given, inside a model's forward pass that knows ``context``."""
    given = {"weight": weight} | ({} if bias is None else {"bias": bias}) | tensors
    with forward_pass(**context):
        return torch.func.functional_call(layer, given, (x,))


def forward_pass(**context) -> ForwardContext:
    """The context that a model's forward pass sets up for its layers."""
    found = ForwardContext(None)
    for name, value in context.items():
        setattr(found, name, value)
    return found


def merged(layer, weight, tensors: dict, **context):
    """The base weight after ``merge_adapter``."""
    filled(layer, weight, tensors)
    with forward_pass(**context):
        layer.merge_adapter(ADAPTER)
    return taken(layer)


def unmerged(layer, weight, tensors: dict):
    """The base weight after ``reset_adapter``, of a layer that was merged and whose weight is the one given."""
    filled(layer, weight, tensors)
    layer.merge_adapter(ADAPTER)
    layer.weight.data = weight.detach().clone()
    layer.reset_adapter()
    return taken(layer)


def filled(layer, weight, tensors: dict) -> None:
    """Let the layer hold the tensors as its own."""
    held = dict(layer.named_parameters())
    for name, tensor in {"weight": weight, **tensors}.items():
        held[name].data = tensor.detach().clone()


def taken(layer):
    """The layer's weight; it is as if unmerged again."""
    layer.merged = False
    return layer.weight.data


@functools.lru_cache(maxsize=256)
def around_sublayer(config: str, d: int, options: tuple) -> BottleneckLayer:
    """The layer in which a model has its bottleneck adapters after a sublayer."""
    layer = BottleneckLayer("output_adapter")
    how = getattr(adapters, config)(**dict(options))
    layer.init_adapters(SimpleNamespace(hidden_size=d), known(how))
    layer.add_adapter(ADAPTER, 0)
    return layer.eval().requires_grad_(False)
