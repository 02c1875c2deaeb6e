"""Prompts and prefixes in peft's files: one tensor for the model, ``prompt_embeddings``.

Where a perceptron or an LSTM was trained, peft keeps what it gave, and so does refpeft: a prompt, or a flat prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refpeft.errors import FormatError
from refpeft.methods import Method
from refpeft.methods.prefix import Cartridge, PTuningV2
from refpeft.methods.prompt import PromptTuning
from refpeft.ops import prefix

TENSOR = "prompt_embeddings"
KINDS = {"PROMPT_TUNING": PromptTuning, "P_TUNING": PromptTuning, "PREFIX_TUNING": PTuningV2, "CARTRIDGE": Cartridge}
FIELDS = (
    "num_virtual_tokens token_dim num_layers num_attention_heads num_transformer_submodules prefix_projection "
    "prompt_tuning_init prompt_tuning_init_text prompt_tuning_init_state_dict_path tokenizer_name_or_path tokenizer_kwargs "
    "encoder_hidden_size encoder_num_layers encoder_dropout encoder_reparameterization_type modules_to_save num_frozen_tokens"
)
"""What says where they come from, or is known of their shape."""

Arrays = Mapping[str, Mapping[str, np.ndarray]]


def encode(method: Method, arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and tensors."""
    if isinstance(method, PromptTuning):
        (given,) = arrays.values()
        flat = np.asarray(given["prompt"])
        shape = {"peft_type": "PROMPT_TUNING", "token_dim": flat.shape[1]}
    else:
        keys, values = (np.stack([np.asarray(a[n]) for a in arrays.values()]) for n in ("prefix_k", "prefix_v"))
        layers, groups, _, size = keys.shape
        flat = prefix.together(keys, values)
        shape = {"token_dim": groups * size, "num_layers": layers, "num_attention_heads": groups}
        if isinstance(method, Cartridge):
            shape |= {"peft_type": "CARTRIDGE", "num_frozen_tokens": method.frozen}
        else:
            shape |= {"peft_type": "PREFIX_TUNING", "prefix_projection": False}
    return shape | {"num_virtual_tokens": len(flat), "num_transformer_submodules": 1}, {TENSOR: flat}


def decode(where: Any, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> tuple[Method, Arrays]:
    """The method and its arrays by site.

    Raises
    ------
    FormatError
        If the tensor is missing, is not alone, or has another shape than the fields say.
    """
    if set(tensors) != {TENSOR}:
        raise FormatError(f"{where}: the tensor {TENSOR} is expected, alone, but {', '.join(tensors) or 'none'} came.")
    flat = np.asarray(tensors[TENSOR])
    if KINDS[config["peft_type"]] is PromptTuning:
        if flat.ndim != 2 or not len(flat):
            raise FormatError(f"{where}: {TENSOR} must be (tokens, width), but has shape {flat.shape}.")
        return PromptTuning(tokens=len(flat)), {"prompt": {"prompt": flat}}
    names = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")
    tokens, layers, groups, width = (_positive(where, config, name) for name in names)
    if flat.shape != (tokens, 2 * layers * width) or width % groups:
        numbers = ", ".join(f"{name} {config[name]}" for name in names)
        raise FormatError(f"{where}: {TENSOR} of shape {flat.shape} is not a prefix of {numbers}.")
    keys, values = prefix.cut(flat, l=layers, g=groups, d=width // groups)
    arrays = {f"layers.{i}.attention": {"prefix_k": keys[i], "prefix_v": values[i]} for i in range(layers)}
    if KINDS[config["peft_type"]] is PTuningV2:
        return PTuningV2(tokens=tokens, size=width // groups), arrays
    frozen = config.get("num_frozen_tokens", 1)
    if type(frozen) is not int or not 0 <= frozen <= tokens:
        raise FormatError(f"{where}: num_frozen_tokens must be from 0 to {tokens}, but {frozen!r} came.")
    return Cartridge(tokens=tokens, size=width // groups, frozen=frozen), arrays


def _positive(where: Any, config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise FormatError(f"{where}: {name} must be a positive integer, but {value!r} came.")
    return value
