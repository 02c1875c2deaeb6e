"""peft's layers around torch's, built as a user builds them, with a problem's tensors in place of their parameters."""

from __future__ import annotations

import copy
import functools
import math
import warnings

import peft
import torch

ADAPTER = "default"


def around_linear(weight, bias, config: str, *, scaling=None, **options):
    """peft's layer around ``torch.nn.Linear`` of the weight's shape and dtype.

    Parameters
    ----------
    weight : (o, i)
    bias : (o,) or None
    config : str
        Name of peft's configuration; ``options`` are its arguments.
    scaling : float, optional
        What peft has worked out as the scale of the update, in place of what it would be.
    """
    o, i = weight.shape
    return built("Linear", (i, o, bias is not None), (), weight.dtype, config, scaling, tuple(sorted(options.items())))


def around_convolution(weight, bias, groups: int, where: dict, config: str, *, scaling=None, **options):
    """peft's layer around torch's convolution of as many dimensions; ``where`` holds stride, padding, dilation, padding mode."""
    o, cg, *kernel = weight.shape
    base, kind = (cg * groups, o, tuple(kernel)), f"Conv{len(kernel)}d"
    keywords = {"bias": bias is not None, "groups": groups} | where
    return built(kind, base, tuple(keywords.items()), weight.dtype, config, scaling, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=1024)
def built(kind: str, base: tuple, keywords: tuple, dtype, config: str, scaling: float | None, options: tuple):
    """The layer, in evaluation mode; kept, since what it holds itself is never used nor changed."""
    layer = getattr(torch.nn, kind)(*base, **dict(keywords), dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = getattr(peft, config)(target_modules=["adapted"], **dict(options))
        model = peft.get_peft_model(torch.nn.ModuleDict({"adapted": layer}), how, autocast_adapter_dtype=False)
    layer = model.base_model.model["adapted"].eval().requires_grad_(False)
    if scaling is not None:
        layer.scaling[ADAPTER] = scaling
    return layer


def named(layer, weight, bias, parameters: dict) -> dict:
    """Tensors by the names that they have in the layer; a parameter is given by peft's name of its dictionary."""
    known = {name for name, _ in layer.named_parameters()} | {name for name, _ in layer.named_buffers()}
    tensors = {"base_layer.weight": weight, "base_layer.bias": bias}
    for name, tensor in parameters.items():
        attribute, _, rest = name.partition(".")
        candidates = [f"{attribute}.{ADAPTER}" + (f".{rest}" if rest else ""), f"{attribute}.{ADAPTER}.weight", name]
        tensors[next(c for c in candidates if c in known)] = tensor
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def called(layer, x, weight, bias, **parameters):
    """The layer's forward at ``x``, with all its tensors given."""
    return torch.func.functional_call(layer, named(layer, weight, bias, parameters), (x,))


def one_batch(array, axes: int):
    """An array of any number of axes before its last ``axes`` with one of them, as layers want it that take a batch only."""
    kept = array.shape[array.ndim - axes :]
    return array.reshape(math.prod(array.shape[: array.ndim - axes]), *kept)


def filled(layer, weight, bias, **parameters):
    """A copy of the layer that holds the tensors as its own."""
    layer = copy.deepcopy(layer)
    held = dict(layer.named_parameters()) | dict(layer.named_buffers())
    for name, tensor in named(layer, weight, bias, parameters).items():
        held[name].data = tensor.detach().clone()
    return layer


def merged(layer, weight, **parameters):
    """The base weight after the layer's own ``merge()``."""
    layer = filled(layer, weight, None, **parameters)
    layer.merge(safe_merge=False)
    return layer.get_base_layer().weight.data


@functools.lru_cache(maxsize=256)
def _several(o: int, i: int, bias: bool, dtype, r: int, count: int):
    """A layer with one adapter, and copies of that in its place: ``add_adapter`` looks at all others each time."""
    layer = copy.deepcopy(built("Linear", (i, o, bias), (), dtype, "LoraConfig", None, (("r", r),)))
    first = layer.lora_A.pop(ADAPTER), layer.lora_B.pop(ADAPTER)
    for k in map(str, range(count)):
        layer.lora_A[k], layer.lora_B[k] = map(copy.deepcopy, first)
    for by_name in (layer.r, layer.lora_alpha, layer.scaling, layer.lora_dropout, layer.use_dora):
        kept = by_name.pop(ADAPTER)
        by_name.update({str(k): kept for k in range(count)})
    layer.set_adapter([str(k) for k in range(count)])
    return layer.requires_grad_(False)


def several(weight, bias, a, b):
    """peft's LoRA layer with an adapter for each of a (k, r, i), named by its number and active; and its tensors by name."""
    layer = _several(*weight.shape, bias is not None, weight.dtype, a.shape[1], a.shape[0])
    tensors = {"base_layer.weight": weight} | ({} if bias is None else {"base_layer.bias": bias})
    factors = {"lora_A": a, "lora_B": b}
    return layer, tensors | {f"{n}.{k}.weight": t for n, stack in factors.items() for k, t in enumerate(stack)}
