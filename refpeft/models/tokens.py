"""Text as token ids, by the ``tokenizers`` package: from a folder's ``tokenizer.json``, or from a GGUF file itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refpeft.errors import CapabilityError, FormatError
from refpeft.files import read_json
from refpeft.formats import gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTROL = 3
"""The token type of GGUF that is never found in text."""


def tokenizer(model: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a model.

    Parameters
    ----------
    model : path-like
        A Hugging Face folder or a GGUF file.

    Raises
    ------
    FormatError
        If there is none.
    CapabilityError
        If the ``tokenizers`` package is not installed, or a GGUF file's tokenizer is of another kind than byte-level BPE.
    """
    tokenizers = _package()
    path = Path(model)
    if not path.is_dir():
        return _from_gguf(tokenizers, path)
    if not (path / "tokenizer.json").is_file():
        raise FormatError(f"{path} has no tokenizer.json, expected one beside the weights.")
    return tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))


def ending(model: str | os.PathLike[str]) -> frozenset[int]:
    """The tokens with which a model ends its text; none where it does not say."""
    path = Path(model)
    if not path.is_dir():
        found = gguf.scan(path).metadata.get("tokenizer.ggml.eos_token_id")
    else:
        said = [read_json(path / name) for name in ("generation_config.json", "config.json") if (path / name).is_file()]
        found = next((c["eos_token_id"] for c in said if c.get("eos_token_id") is not None), None)
    return frozenset(int(i) for i in (found if isinstance(found, list) else [] if found is None else [found]))


def files(model: str | os.PathLike[str]) -> dict[str, bytes]:
    """What a folder needs to hold the tokenizer of a GGUF file; nothing for a folder, or a kind that is not read."""
    path = Path(model)
    if path.is_dir() or path.suffix == ".safetensors":
        return {}
    try:
        made = tokenizer(path)
    except CapabilityError:
        return {}
    found = gguf.scan(path).metadata
    named = {f"{n}_token": found.get(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos")}
    words = found.get("tokenizer.ggml.tokens", [])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": found.get("tokenizer.chat_template")}
    config |= {n: words[i] for n, i in named.items() if i is not None}
    ids = {f"{n}_id": int(i) for n, i in named.items() if i is not None}
    said = {"tokenizer_config.json": config, "generation_config.json": ids}
    return {"tokenizer.json": made.to_str(pretty=True).encode()} | {
        name: (json.dumps(content, indent=2) + "\n").encode() for name, content in said.items()
    }


def _from_gguf(tokenizers, path: Path) -> Tokenizer:
    """Byte-level BPE, as GPT-2 has it; ``smollm`` takes digits one by one."""
    found: dict[str, Any] = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in gguf.scan(path).metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    kind, split = found.get("model"), found.get("pre", "gpt-2")
    if kind != "gpt2" or split not in ("gpt-2", "smollm"):
        raise CapabilityError(f"{path}: the tokenizer is {kind} ({split}), but gpt2 (gpt-2, smollm) is read.")
    words, merges = found["tokens"], [tuple(pair.split(" ")) for pair in found["merges"]]
    result = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, merges))
    parts = [tokenizers.pre_tokenizers.Digits(individual_digits=True)] if split == "smollm" else []
    parts.append(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False))
    result.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)
    result.decoder = tokenizers.decoders.ByteLevel()
    result.add_special_tokens([words[i] for i, type in enumerate(found["token_type"]) if type == _CONTROL])
    return result


def _package():
    try:
        import tokenizers
    except ImportError:
        raise CapabilityError(
            "Text needs the tokenizers package, which is not installed: run pip install 'refpeft[train]'."
        ) from None
    return tokenizers
