"""Decoders from files: a Hugging Face folder, or GGUF."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refpeft.convert.source import Tensor, open_model
from refpeft.errors import CapabilityError, FormatError
from refpeft.formats.peft import MODULES
from refpeft.memory.decoder import Decoder
from refpeft.memory.models import from_config
from refpeft.models.llama import Llama
from refpeft.models.sites import place
from refpeft.numerics.formats import as_format
from refpeft.ops import rope

_NORMS = {"attn.norm": "input_layernorm", "mlp.norm": "post_attention_layernorm"}


def load(path: str | os.PathLike[str], *, dtype: str = "float32", backend: str = "torch", device: str = "") -> Llama:
    """The decoder in a Hugging Face folder (``config.json`` and safetensors, sharded or not) or a GGUF file.

    Parameters
    ----------
    path : path-like
    dtype : str
        What its weights are rounded to.
    backend, device : str
        On what it runs.

    Raises
    ------
    FormatError
        If there is no such model, a tensor is missing or has another shape than the configuration says.
    CapabilityError
        If it is another architecture than Llama's, or one of its features is not computed.
    """
    source = open_model(path)
    if source.config is None:
        raise FormatError(f"{path}: a model needs its config.json beside its weights.")
    shape = from_config(source.config, os.fspath(path))
    _require_plain(path, source.config)
    frequencies = _frequencies(path, source.config, shape.head_size)
    wanted, weights = as_format(dtype).dtype, {}
    for name, theirs in _names(shape):
        if theirs not in source.tensors:
            raise FormatError(
                f"{path}: there is no tensor {theirs!r}, expected the {name} of a model of {shape.layers} layers."
            )
        weights[name] = _read(source.tensors[theirs], wanted)
    expected = {f"layers.{i}.{place(m.site)}": (m.o, m.i) for i in range(shape.layers) for m in shape.matrices()}
    for name, size in expected.items():
        if weights[name].shape != size:
            raise FormatError(f"{path}: {name} has shape {weights[name].shape}, expected {size}.")
    eps = source.config.get("rms_norm_eps", 1e-6)
    return Llama(shape, weights, eps=eps, frequencies=frequencies, backend=backend, device=device)


def _require_plain(path, config: Mapping[str, Any]) -> None:
    """Refuse what would be computed otherwise than the model means it."""
    if config.get("sliding_window") is not None and config.get("use_sliding_window", True):
        raise CapabilityError(
            f"{path}: attention slides over {config['sliding_window']} tokens, which is not computed yet."
        )


def _frequencies(path, config: Mapping[str, Any], size: int) -> np.ndarray:
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
        raise FormatError(f"{path}: positions scaled as {kind} need {error}, which rope_scaling lacks.") from error
    if kind == "default":
        return plain
    raise CapabilityError(f"{path}: positions are scaled by {json.dumps(scaling)}, which is not computed yet.")


def _read(tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    """All of a tensor, each piece rounded as it comes."""
    array, at = np.empty(tensor.elements, dtype), 0
    for piece in tensor.pieces():
        array[at : at + piece.size] = piece.reshape(-1)
        at += piece.size
    return array.reshape(tensor.shape)


def _names(shape: Decoder) -> Iterator[tuple[str, str]]:
    """Our name of every tensor, and the one that transformers has."""
    yield "embedding", "model.embed_tokens.weight"
    yield "norm", "model.norm.weight"
    if not shape.tied:
        yield "head", "lm_head.weight"
    biased = {place(m.site) for m in shape.matrices() if m.bias}
    for i in range(shape.layers):
        for name, theirs in (_NORMS | MODULES).items():
            yield f"layers.{i}.{name}", f"model.layers.{i}.{theirs}.weight"
            if name in biased:
                yield f"layers.{i}.{name}.bias", f"model.layers.{i}.{theirs}.bias"
