"""Decoders from files: a Hugging Face folder, or GGUF."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refpeft.errors import CapabilityError, FormatError
from refpeft.files import read_json
from refpeft.formats import gguf, safetensors
from refpeft.formats.peft import MODULES
from refpeft.memory import models
from refpeft.models.llama import Llama, place
from refpeft.numerics.formats import as_format

_NORMS = {"attn.norm": "input_layernorm", "mlp.norm": "post_attention_layernorm"}
_GGUF = {
    "attn.norm": "attn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.o": "attn_output",
    "mlp.norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
"""Names within a layer, and GGUF's."""


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
        If it is another architecture than Llama's, or its positions are scaled.
    """
    path = Path(path)
    shape = models.read(os.fspath(path))
    numbers, tensors = _folder(path) if path.is_dir() else _gguf(path)
    wanted = as_format(dtype).dtype
    weights = {}
    for name, theirs in _names(shape.layers, shape.tied, folder=path.is_dir()):
        if theirs not in tensors:
            raise FormatError(
                f"{path}: there is no tensor {theirs!r}, expected the {name} of a model of {shape.layers} layers."
            )
        array = np.asarray(tensors[theirs])
        if not path.is_dir() and name.endswith((".attn.q", ".attn.k")):
            array = _halves(array, shape.heads if name.endswith("q") else shape.kv_heads)
        weights[name] = array.astype(wanted)
    expected = {f"layers.{i}.{place(m.site)}": (m.o, m.i) for i in range(shape.layers) for m in shape.matrices()}
    for name, size in expected.items():
        if weights[name].shape != size:
            raise FormatError(f"{path}: {name} has shape {weights[name].shape}, expected {size}.")
    return Llama(shape, weights, **numbers, backend=backend, device=device)


def _folder(path: Path) -> tuple[dict[str, float], Any]:
    config = read_json(path / "config.json")
    scaling = config.get("rope_scaling")
    if scaling is not None and scaling.get("rope_type", scaling.get("type")) != "default":
        raise CapabilityError(f"{path}: positions are scaled by {json.dumps(scaling)}, which is not read yet.")
    if config.get("sliding_window") is not None:
        raise CapabilityError(
            f"{path}: attention slides over {config['sliding_window']} tokens, which is not computed yet."
        )
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise FormatError(f"{path}: there is no safetensors file, expected the model's weights.")
    tensors = {name: file[name] for file in map(safetensors.scan, files) for name in file}
    numbers = {"eps": config.get("rms_norm_eps", 1e-6), "base": config.get("rope_theta", 10000.0)}
    return numbers, tensors


def _gguf(path: Path) -> tuple[dict[str, float], gguf.Lazy]:
    tensors = gguf.scan(path)
    kind = tensors.metadata["general.architecture"]
    if tensors.metadata.get(f"{kind}.rope.scaling.type", "none") != "none":
        raise CapabilityError(f"{path}: positions are scaled, which is not read yet.")
    numbers = {
        "eps": float(tensors.metadata[f"{kind}.attention.layer_norm_rms_epsilon"]),
        "base": float(tensors.metadata.get(f"{kind}.rope.freq_base", 10000.0)),
    }
    return numbers, tensors


def _names(layers: int, tied: bool, folder: bool) -> Iterator[tuple[str, str]]:
    """Our name of every tensor, and the file's."""
    which = 0 if folder else 1
    yield "embedding", ("model.embed_tokens.weight", "token_embd.weight")[which]
    yield "norm", ("model.norm.weight", "output_norm.weight")[which]
    if not tied:
        yield "head", ("lm_head.weight", "output.weight")[which]
    layer, names = ("model.layers", _NORMS | MODULES) if folder else ("blk", _GGUF)
    for i in range(layers):
        for name, theirs in names.items():
            yield f"layers.{i}.{name}", f"{layer}.{i}.{theirs}.weight"


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows whose rotary pairs are neighbours, as llama.cpp stores them, in the order in which they are halves."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
