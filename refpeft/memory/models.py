"""Where a decoder's shapes come from: the papers' presets, a Hugging Face ``config.json``, the header of a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from refpeft.errors import FormatError
from refpeft.files import read_json
from refpeft.formats.safetensors_header import short
from refpeft.memory.decoder import Decoder

ALL_GPT2 = frozenset({"q", "k", "v", "qkv", "o", "up", "down"})
_QKV = frozenset({"q", "k", "v"})
_GATED = frozenset({"gate", "up", "down"})


def _llama(name: str, width: int, layers: int, heads: int, inner: int) -> Decoder:
    return Decoder(
        name=name,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_size=width // heads,
        inner=inner,
        vocabulary=32000,
    )


PRESETS = {
    "gpt3-175b": Decoder(
        name="gpt3-175b",
        width=12288,
        layers=96,
        heads=96,
        kv_heads=96,
        head_size=128,
        inner=4 * 12288,
        vocabulary=50257,
        positions=2048,
        gated=False,
        centred=True,
        biased=ALL_GPT2,
        tied=True,
    ),
    "llama-7b": _llama("llama-7b", 4096, 32, 32, 11008),
    "llama-13b": _llama("llama-13b", 5120, 40, 40, 13824),
    "llama-33b": _llama("llama-33b", 6656, 60, 52, 17920),
    "llama-65b": _llama("llama-65b", 8192, 80, 64, 22016),
}
"""GPT-3 (arXiv:2005.14165, table 2.1) with q, k and v apart, as LoRA adapts them; LLaMA (arXiv:2302.13971, table 2), whose
feed-forward width is 2/3 of 4 w, rounded up to a multiple of 256."""

FAMILIES = ("llama", "mistral", "qwen2", "gpt2", "bert")
"""The values of ``model_type`` that are read; the first three are one family, which differs in biases."""


def read(model: str) -> Decoder:
    """The decoder that ``model`` names: a preset, a ``config.json``, a folder that has one, or a GGUF file.

    Raises
    ------
    FormatError
        If it is none of them, or its architecture is not one of `FAMILIES`, or it is an encoder.
    """
    if model in PRESETS:
        return PRESETS[model]
    path = os.path.join(model, "config.json") if os.path.isdir(model) else model
    if not os.path.isfile(path):
        raise FormatError(
            f"There is no model {model!r}: expected one of {', '.join(PRESETS)}, a Hugging Face config.json or a "
            "folder that has one, or a GGUF file."
        )
    with open(path, "rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    found = from_gguf(path) if is_gguf else from_config(read_json(path), path)
    if not found.causal:
        raise FormatError(f"{model} is an encoder, but memory is counted for decoders.")
    return found


def from_config(config: Mapping[str, Any], where: str) -> Decoder:
    """A decoder, or BERT, from what a Hugging Face ``config.json`` holds, with the library's defaults for what it may leave out.

    Raises
    ------
    FormatError
        If the family is another, or a size is no positive integer.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise FormatError(f"{where}: model_type is {short.repr(kind)}, expected one of {', '.join(FAMILIES)}.")
    size = _Sizes(config, where)
    name = os.path.basename(os.path.dirname(os.path.abspath(where))) if where.endswith("config.json") else where
    if kind == "gpt2":
        width, heads = size("n_embd"), size("n_head")
        return Decoder(
            name=name,
            width=width,
            layers=size("n_layer"),
            heads=heads,
            kv_heads=heads,
            head_size=size.share("n_embd", width, heads),
            inner=size("n_inner", 4 * width),
            vocabulary=size("vocab_size"),
            positions=size("n_positions"),
            fused=True,
            gated=False,
            centred=True,
            biased=ALL_GPT2,
            tied=size.flag("tie_word_embeddings", True),
            dropout=any(config.get(key, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
            family="gpt2",
        )
    width, heads = size("hidden_size"), size("num_attention_heads")
    if kind == "bert":
        return Decoder(
            name=name,
            width=width,
            layers=size("num_hidden_layers"),
            heads=heads,
            kv_heads=heads,
            head_size=size.share("hidden_size", width, heads),
            inner=size("intermediate_size"),
            vocabulary=size("vocab_size"),
            positions=size("max_position_embeddings"),
            segments=size("type_vocab_size", 2),
            gated=False,
            centred=True,
            post=True,
            causal=False,
            biased=ALL_GPT2,
            family="bert",
        )
    attention = frozenset({"q", "k", "v", "o"}) if size.flag("attention_bias", False) else frozenset()
    return Decoder(
        name=name,
        width=width,
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_size=size("head_dim", None) or size.share("hidden_size", width, heads),
        inner=size("intermediate_size"),
        vocabulary=size("vocab_size"),
        context=size("max_position_embeddings", 0),
        biased={
            "llama": attention | (_GATED if size.flag("mlp_bias", False) else frozenset()),
            "mistral": frozenset(),
            "qwen2": _QKV,
        }[kind],
        tied=size.flag("tie_word_embeddings", False),
    )


def from_gguf(path: str) -> Decoder:
    """A decoder from the header and the tensors' shapes of a GGUF file.

    Raises
    ------
    FormatError
        If the file is malformed, its architecture is another, or a size is missing.
    """
    from refpeft.formats import gguf

    tensors = gguf.scan(path)
    names = set(tensors.names())
    kind = tensors.metadata.get("general.architecture")
    if kind not in FAMILIES or kind == "bert":
        decoders = ", ".join(family for family in FAMILIES if family != "bert")
        raise FormatError(f"{path}: general.architecture is {short.repr(kind)}, expected one of {decoders}.")
    if "token_embd.weight" not in names:
        raise FormatError(f"{path}: there is no tensor token_embd.weight, expected the table of embeddings.")
    size = _Sizes({k.removeprefix(f"{kind}."): v for k, v in tensors.metadata.items()}, path)
    width, heads, plain = size("embedding_length"), size("attention.head_count"), kind == "gpt2"
    files = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "qkv": "attn_qkv", "o": "attn_output"}
    files |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    return Decoder(
        name=os.path.basename(path),
        width=width,
        layers=size("block_count"),
        heads=heads,
        kv_heads=size("attention.head_count_kv", heads),
        head_size=size("attention.key_length", None) or size.share("embedding_length", width, heads),
        inner=size("feed_forward_length"),
        vocabulary=tensors.shape("token_embd.weight")[0],
        positions=size("context_length") if plain else 0,
        context=0 if plain else size("context_length", 0),
        fused=plain,
        gated=not plain,
        centred=plain,
        biased=frozenset(site for site, file in files.items() if f"blk.0.{file}.bias" in names),
        tied="output.weight" not in names,
        dropout=plain,
        family="gpt2" if plain else "llama",
    )


_NEEDED = object()


class _Sizes:
    """Positive integers, and what is so or not, out of a mapping of unknown origin."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def __call__(self, key: str, default: Any = _NEEDED) -> Any:
        value = self.values.get(key)
        if value is None and default is not _NEEDED:
            return default
        if type(value) is not int or not 0 < value < 1 << 40:
            raise FormatError(f"{self.where}: {key} must be a positive integer, got {short.repr(value)}.")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Whether something is so."""
        value = default if self.values.get(key) is None else self.values[key]
        if not isinstance(value, bool):
            raise FormatError(f"{self.where}: {key} must be true or false, got {short.repr(value)}.")
        return value

    def share(self, key: str, width: int, heads: int) -> int:
        """The width of each of ``heads`` equal parts."""
        if width % heads:
            raise FormatError(f"{self.where}: {key} must be a multiple of the {heads} heads, got {width}.")
        return width // heads
