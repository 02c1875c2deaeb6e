"""What a model's configuration says beside its sizes: epsilon, activation, positions. What would not be computed is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from refpeft.errors import CapabilityError, FormatError
from refpeft.memory.decoder import Decoder
from refpeft.ops import rope

Config = Mapping[str, Any]
GELUS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
"""transformers' names of GELU, exact and by tanh."""

_NEEDED: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {"hidden_act": ("silu",)},
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


def features(where: str | os.PathLike[str], config: Config, shape: Decoder) -> dict[str, Any]:
    """What `refpeft.models.transformer.Transformer` takes by name.

    Raises
    ------
    CapabilityError
        If the model is computed in another way than is known here.
    FormatError
        If a number is missing.
    """
    for name, values in _NEEDED[shape.family].items():
        if (value := config.get(name)) not in (None, *values):
            raise CapabilityError(
                f"{where}: {name} is {json.dumps(value)}, but {', '.join(map(json.dumps, values))} is computed."
            )
    if shape.family == "gpt2":
        gelu = GELUS[config.get("activation_function") or "gelu_new"]
        return {"eps": config.get("layer_norm_epsilon", 1e-5), "gelu": gelu}
    if shape.family == "bert":
        return {"eps": config.get("layer_norm_eps", 1e-12), "gelu": GELUS[config.get("hidden_act") or "gelu"]}
    if config.get("sliding_window") is not None and config.get("use_sliding_window", True):
        raise CapabilityError(
            f"{where}: attention slides over {config['sliding_window']} tokens, which is not computed yet."
        )
    return {"eps": config.get("rms_norm_eps", 1e-6), "frequencies": _frequencies(where, config, shape.head_size)}


def _frequencies(where, config: Config, size: int) -> np.ndarray:
    """Of the rotary positions, scaled as the configuration says."""
    plain, scaling = rope.inverse_frequencies(size, config.get("rope_theta", 10000.0)), config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    try:
        if kind == "linear":
            return rope.interpolated(plain, scaling["factor"])
        if kind == "llama3":
            turns = {"low": scaling["low_freq_factor"], "high": scaling["high_freq_factor"]}
            context = scaling["original_max_position_embeddings"]
            return rope.llama3(plain, factor=scaling["factor"], context=context, **turns)
    except KeyError as error:
        raise FormatError(f"{where}: positions scaled as {kind} need {error}, which rope_scaling lacks.") from error
    if kind == "default":
        return plain
    raise CapabilityError(f"{where}: positions are scaled by {json.dumps(scaling)}, which is not computed yet.")
