"""What a model's configuration says beside its sizes: epsilon, activation, positions. What would not be computed is refused."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refpeft.errors import CapabilityError, FormatError
from refpeft.memory.decoder import Decoder
from refpeft.ops import rope

Config = Mapping[str, Any]
GELUS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
"""transformers' names of GELU, exact and by tanh."""

_NEEDED: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {"hidden_act": ("silu",), "partial_rotary_factor": (1.0,)},
    "gpt2": {
        "activation_function": tuple(GELUS),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "bert": {
        "hidden_act": tuple(GELUS),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
}
"""The values that are computed, of fields that may have others."""
_ATTENTIONS = ("full_attention", "sliding_attention")
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
"""Of rotary positions; the last holds the other two since transformers 5."""


def features(where: str | os.PathLike[str], config: Config, shape: Decoder) -> dict[str, Any]:
    """What `refpeft.models.transformer.Transformer` takes by name.

    Raises
    ------
    CapabilityError
        If the model is computed in another way than is known here.
    FormatError
        If a number is missing, or is none.
    """
    for name, values in _NEEDED[shape.family].items():
        if (value := config.get(name)) not in (None, *values):
            raise CapabilityError(
                f"{where}: {name} is {json.dumps(value)}, but {', '.join(map(json.dumps, values))} is computed."
            )
    if shape.family == "gpt2":
        gelu = GELUS[config.get("activation_function") or "gelu_new"]
        return {"eps": _epsilon(where, config, "layer_norm_epsilon", 1e-5), "gelu": gelu}
    if shape.family == "bert":
        gelu, dropout = GELUS[config.get("hidden_act") or "gelu"], rate(where, config, "hidden_dropout_prob", 0.1)
        return {"eps": _epsilon(where, config, "layer_norm_eps", 1e-12), "gelu": gelu, "hidden_dropout": dropout}
    eps, windows = _epsilon(where, config, "rms_norm_eps", 1e-6), _windows(where, config, shape.layers)
    positions = _positions(where, config, shape.head_size)
    if not (positions["frequencies"] < 2**31).all():
        raise FormatError(
            f"{where}: its rotary positions turn by {max(positions['frequencies'])}, expected less than 2**31."
        )
    return {"eps": eps, "windows": windows, **positions}


def rate(where: str | os.PathLike[str], config: Config, name: str, otherwise: float) -> float:
    """Of dropout.

    Raises
    ------
    FormatError
        If it is none.
    """
    value = otherwise if config.get(name) is None else config[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise FormatError(f"{where}: {name} must be a number from 0 and below 1, but {json.dumps(value)} came.")
    return float(value)


def _windows(where, config: Config, layers: int) -> tuple[int, ...]:
    """How many tokens each block's attention slides over, 0 where it sees them all; of Mistral and, where it is used, Qwen2."""
    kind = config.get("model_type")
    slides = kind == "mistral" or (kind == "qwen2" and config.get("use_sliding_window", False))
    if not slides or config.get("sliding_window", 4096) is None:
        return (0,) * layers
    window = _number(where, config, "sliding_window", 4096)
    if window != int(window):
        raise FormatError(f"{where}: sliding_window must be a whole number of tokens, but {window} came.")
    if kind == "mistral":
        return (int(window),) * layers
    if (kinds := config.get("layer_types")) is None:
        first = config.get("max_window_layers", 28)
        if type(first) is not int or first < 0:
            raise FormatError(f"{where}: max_window_layers must be a whole number, but {json.dumps(first)} came.")
        return tuple(int(window) if layer >= first else 0 for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers or not all(which in _ATTENTIONS for which in kinds):
        wanted = f"name one of {', '.join(_ATTENTIONS)} for each of {layers} layers"
        raise FormatError(f"{where}: layer_types must {wanted}, but {json.dumps(kinds)} came.")
    return tuple(int(window) if which == "sliding_attention" else 0 for which in kinds)


def _positions(where, config: Config, size: int) -> dict[str, Any]:
    """Frequencies of rotary positions, and what their cosines and sines are multiplied by, as the configuration says."""
    stated = {"rope_theta": 10000.0} | {n: config[n] for n in _ROPE if config.get(n) is not None}
    for name in _ROPE[1:]:
        if not isinstance(stated.get(name, {}), Mapping):
            raise FormatError(f"{where}: {name} must be an object, but {json.dumps(stated[name])} came.")
    scaling = {**stated.get("rope_scaling", {}), **stated.get("rope_parameters", {})}
    if scaling.get("partial_rotary_factor") not in (None, 1.0):
        raise CapabilityError(f"{where}: rotary positions of a part of each head are not computed, but of 1.0.")
    base = _number(where, stated | {n: v for n, v in scaling.items() if n == "rope_theta"}, "rope_theta")
    with np.errstate(over="ignore"):
        plain = rope.inverse_frequencies(size, base)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    number = functools.partial(_number, f"{where}: rope_scaling of type {kind}", scaling)
    if kind == "default":
        return {"frequencies": plain}
    if kind == "linear":
        return {"frequencies": rope.interpolated(plain, number("factor"))}
    if kind == "llama3":
        turns = {"low": number("low_freq_factor"), "high": number("high_freq_factor")}
        context = number("original_max_position_embeddings")
        if turns["low"] >= turns["high"]:
            raise FormatError(
                f"{where}: rope_scaling of type llama3: low_freq_factor must be below high_freq_factor, but "
                f"{turns['low']:g} and {turns['high']:g} came."
            )
        return {"frequencies": rope.llama3(plain, factor=number("factor"), context=context, **turns)}
    if kind == "yarn":
        context = number("original_max_position_embeddings", config.get("max_position_embeddings"))
        turns = {"fast": number("beta_fast", 32), "slow": number("beta_slow", 1)}
        numbers = {"base": base, "factor": number("factor"), "context": context} | turns
        scaled = rope.yarn(plain, **numbers, truncate=bool(scaling.get("truncate", True)))
        return {"frequencies": scaled, "magnitude": _magnitude(scaling, number)}
    raise CapabilityError(f"{where}: positions are scaled by {json.dumps(scaling)}, which is not computed yet.")


def _magnitude(scaling: Config, number: Callable) -> float:
    """YaRN's, where it is not stated."""
    if scaling.get("attention_factor") is not None:
        return number("attention_factor")
    factor = number("factor")
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return rope.yarn_magnitude(factor, number("mscale")) / rope.yarn_magnitude(factor, number("mscale_all_dim"))
    return rope.yarn_magnitude(factor)


def _epsilon(where, config: Config, name: str, otherwise: float) -> float:
    """What is added to a variance."""
    value = otherwise if config.get(name) is None else config[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise FormatError(f"{where}: {name} must be a number from 0 and below 1, but {json.dumps(value)} came.")
    return float(value)


def _number(where, values: Config, name: str, otherwise: float | None = None) -> float:
    """A positive number, or another where there is none."""
    value = otherwise if values.get(name) is None else values[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise FormatError(f"{where}: {name} must be a positive number, but {json.dumps(value)} came.")
    return value
