"""A Llama, Qwen2 or GPT-2 model in a GGUF file as transformers would store it: names, the order of rows, the configuration.

llama.cpp rotates neighbouring elements of a head, transformers those half a head apart. Its converter therefore moves row
(j, t) of each of Llama's query and key heads, j < d / 2 and t < 2, to where row (t, j) was; here they are moved back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refpeft.errors import FormatError
from refpeft.formats import gguf
from refpeft.formats.names import FAMILIES
from refpeft.formats.safetensors_header import short
from refpeft.memory.models import from_gguf

_TOP = {"token_embd": "embedding", "position_embd": "positions", "output_norm": "norm", "output": "head"}
_BLOCK = {
    "attn_norm": "attn.norm",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_qkv": "attn.qkv",
    "attn_output": "attn.o",
    "ffn_norm": "mlp.norm",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
"""Our names of a model's parts."""

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "gpt2": "GPT2LMHeadModel"}


def configuration(path: Path, lazy: gguf.Lazy) -> dict[str, Any]:
    """What ``config.json`` says of the model.

    Raises
    ------
    FormatError
        If the architecture is another, or its rotary positions are scaled or partial.
    """
    kind = lazy.metadata.get("general.architecture")
    if kind not in _CLASSES:
        raise FormatError(
            f"{path}: general.architecture is {short.repr(kind)}, expected one of {', '.join(_CLASSES)} to be converted."
        )
    decoder = from_gguf(str(path))
    keys = {k.removeprefix(f"{kind}."): v for k, v in lazy.metadata.items()}

    def number(key: str, default: float | None) -> Any:
        value = keys.get(key, default)
        if value is not None and (type(value) not in (int, float) or not 0 <= value < math.inf):
            raise FormatError(f"{path}: {key} must be a finite number, 0 or more, got {short.repr(value)}.")
        return value

    shared = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": decoder.vocabulary,
        "tie_word_embeddings": decoder.tied,
        "bos_token_id": number("tokenizer.ggml.bos_token_id", None),
        "eos_token_id": number("tokenizer.ggml.eos_token_id", None),
        "torch_dtype": "float32",
    }
    if kind == "gpt2":
        return shared | {
            "n_embd": decoder.width,
            "n_inner": decoder.inner,
            "n_layer": decoder.layers,
            "n_head": decoder.heads,
            "n_positions": decoder.positions,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": float(number("attention.layer_norm_epsilon", 1e-5)),
        }
    scaling = keys.get("rope.scaling.type", "none")
    if scaling != "none":
        raise FormatError(f"{path}: its rotary positions are scaled ({short.repr(scaling)}), which is not converted.")
    if number("rope.dimension_count", decoder.head_size) != decoder.head_size or decoder.head_size % 2:
        raise FormatError(f"{path}: rope.dimension_count must be the head's {decoder.head_size} and even, got another.")
    return shared | {
        "hidden_size": decoder.width,
        "intermediate_size": decoder.inner,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_size,
        "hidden_act": "silu",
        "attention_bias": "q" in decoder.biased,
        "max_position_embeddings": number("context_length", 2048),
        "rope_theta": float(number("rope.freq_base", 10000.0)),
        "rms_norm_eps": float(number("attention.layer_norm_rms_epsilon", 1e-5)),
    }


def places(path: Path, lazy: gguf.Lazy, config: Mapping[str, Any]) -> dict[str, tuple[str, np.ndarray | None]]:
    """For each tensor's new name its name in the file, and the order of the rows of each head where it changes.

    Raises
    ------
    FormatError
        If a tensor has no place in the model, or a matrix not the rows of its heads.
    """
    kind = config["model_type"]
    names = FAMILIES["gpt2" if kind == "gpt2" else "llama"]
    size = config.get("head_dim", 2)
    order = np.arange(size).reshape(size // 2, 2).T.reshape(-1)
    heads = {"attn_q": config.get("num_attention_heads"), "attn_k": config.get("num_key_value_heads")}
    found: dict[str, tuple[str, np.ndarray | None]] = {}
    for old in lazy.names():
        stem, _, array = old.rpartition(".")
        part, site = _TOP.get(stem, ""), ""
        if stem.startswith("blk.") and stem.count(".") == 2:
            _, layer, site = stem.split(".")
            part = f"layers.{layer}.{_BLOCK.get(site)}"
        if (name := names.module(part)) is None or array not in ("weight", "bias"):
            raise FormatError(f"{path}: tensor {short.repr(old)} has no place in a {kind} model.")
        moved = site in heads and kind == "llama"
        if site in heads and lazy.shape(old)[0] != heads[site] * size:
            raise FormatError(f"{path}: {old} must have {heads[site]} heads of {size} rows, got {lazy.shape(old)}.")
        if moved and array == "bias":
            raise FormatError(f"{path}: {old}: the order of a bias's elements in a Llama model is not converted.")
        found[f"{name}.{array}"] = (old, order if moved else None)
    names.require_layers(path, found, config["n_layer" if kind == "gpt2" else "num_hidden_layers"])
    return found
