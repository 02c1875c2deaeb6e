"""Decoders from files: a Hugging Face folder, or GGUF."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refpeft import plugins
from refpeft.backend import Backend
from refpeft.convert.quantise import Settings
from refpeft.convert.source import Tensor, open_model
from refpeft.errors import CapabilityError, FormatError
from refpeft.formats.bitsandbytes_state import DTYPES
from refpeft.formats.four_bit import Quantised
from refpeft.formats.four_bit import quantise as quantised
from refpeft.formats.peft import MODULES
from refpeft.memory.decoder import Decoder
from refpeft.memory.models import from_config
from refpeft.models.language import LanguageModel
from refpeft.models.places import place
from refpeft.numerics.formats import as_format
from refpeft.ops import rope

_NORMS = {"attn.norm": "input_layernorm", "mlp.norm": "post_attention_layernorm"}


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    quantise: Settings | None = None,
    backend: str = "torch",
    device: str = "",
) -> LanguageModel:
    """The decoder in a Hugging Face folder (``config.json`` and safetensors, sharded or not) or a GGUF file.

    A checkpoint of bitsandbytes in 4 bits stays in them.

    Parameters
    ----------
    path : path-like
    dtype : str
        What its weights are rounded to.
    quantise : refpeft.convert.quantise.Settings, optional
        Keep the matrices of its blocks in 4 bits, as `refpeft.models.four_bit` has them.
    backend, device : str
        On what it runs.

    Raises
    ------
    FormatError
        If there is no such model, a tensor is missing or has another shape than the configuration says, or it is to be quantised
        and is already.
    CapabilityError
        If it is another architecture than Llama's, or one of its features is not computed.
    """
    source = open_model(path, four_bit=True)
    if source.config is None:
        raise FormatError(f"{path}: a model needs its config.json beside its weights.")
    shape = from_config(source.config, os.fspath(path))
    _require_plain(path, source.config)
    frequencies = _frequencies(path, source.config, shape.head_size)
    wanted = as_format(dtype).dtype
    matrices = {f"layers.{i}.{place(m.site)}": (m.o, m.i) for i in range(shape.layers) for m in shape.matrices()}
    weights: dict[str, np.ndarray | Quantised] = {}
    for name, theirs in _names(shape):
        if theirs not in source.tensors:
            raise FormatError(
                f"{path}: there is no tensor {theirs!r}, expected the {name} of a model of {shape.layers} layers."
            )
        tensor = source.tensors[theirs]
        if name in matrices and tensor.shape != matrices[name]:
            raise FormatError(f"{path}: {name} has shape {tensor.shape}, expected {matrices[name]}.")
        if tensor.four_bit and quantise:
            raise FormatError(f"{path}: {name} is in 4 bits already, expected floating-point numbers to quantise.")
        if tensor.four_bit and name in matrices:
            weights[name] = tensor.four_bit()
        elif quantise and name in matrices:
            weights[name] = _quantised(tensor, wanted, quantise, plugins.backend(backend))
        else:
            weights[name] = tensor.whole(wanted)
    eps = source.config.get("rms_norm_eps", 1e-6)
    return LanguageModel(shape, weights, eps=eps, frequencies=frequencies, backend=backend, device=device)


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


def _quantised(tensor: Tensor, dtype: np.dtype, settings: Settings, backend: Backend) -> Quantised:
    """All of a tensor in 4 bits; what is decoded of it is as wide as its model, but float32 at most."""
    decoded = dtype.name if dtype.name in DTYPES else "float32"
    pieces = (piece.astype(dtype) for piece in tensor.pieces())
    kind, blocksize, double = settings.kind, settings.blocksize, settings.double
    return quantised(
        pieces, tensor.shape, kind=kind, blocksize=blocksize, double=double, dtype=decoded, backend=backend
    )


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
