"""Text as token ids, by the ``tokenizers`` package: from a folder's ``tokenizer.json``, or from a GGUF file itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refpeft.errors import CapabilityError, FormatError
from refpeft.files import read_json, understood
from refpeft.formats import gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTROL = 3
"""The token type of GGUF that is never found in text."""


def tokenizer(model: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a model, which neither pads nor cuts a text, whatever its file says.

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
        with understood(path):
            return _from_gguf(tokenizers, path)
    if not (path / "tokenizer.json").is_file():
        raise FormatError(f"{path} has no tokenizer.json, expected one beside the weights.")
    try:
        found = tokenizers.Tokenizer.from_buffer((path / "tokenizer.json").read_bytes())
    except OSError:
        raise
    except Exception as error:
        raise FormatError(f"{path / 'tokenizer.json'} is no tokenizer of the tokenizers package: {error}.") from error
    found.no_padding()
    found.no_truncation()
    return found


def ending(model: str | os.PathLike[str]) -> frozenset[int]:
    """The tokens with which a model ends its text; none where it does not say.

    Raises
    ------
    FormatError
        If what it says is no token id, nor several.
    """
    path = Path(model)
    if not path.is_dir():
        return frozenset(i for n, i in special(path).items() if n == "eos_token")
    said = [read_json(path / name) for name in ("generation_config.json", "config.json") if (path / name).is_file()]
    found: Any = next((c["eos_token_id"] for c in said if c.get("eos_token_id") is not None), [])
    ids = found if isinstance(found, list) else [found]
    if not all(type(i) is int for i in ids):
        raise FormatError(f"{path}: eos_token_id must be a token id or several, but {found!r} came.")
    return frozenset(ids)


def special(path: Path) -> dict[str, int]:
    """A GGUF file's tokens that begin and end a text, ``bos_token`` and ``eos_token``, as far as it has them.

    Raises
    ------
    FormatError
        If one is not among its tokens.
    """
    found, ids = gguf.scan(path).metadata, {}
    with understood(path):
        count = len(found.get("tokenizer.ggml.tokens", []))
    for name in ("bos_token", "eos_token"):
        if (number := found.get(f"tokenizer.ggml.{name}_id")) is not None:
            if not isinstance(number, int) or not 0 <= number < count:
                raise FormatError(f"{path}: {name}_id must be from 0 to {count - 1}, but {number!r} came.")
            ids[name] = number
    return ids


def files(model: str | os.PathLike[str]) -> dict[str, bytes]:
    """What a folder needs to hold the tokenizer of a GGUF file; nothing for a folder, or a kind that is not read."""
    path = Path(model)
    if path.is_dir() or path.suffix == ".safetensors":
        return {}
    try:
        made = tokenizer(path)
    except CapabilityError:
        return {}
    ids, found = special(path), gguf.scan(path).metadata
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": found.get("tokenizer.chat_template")}
    config |= {name: found["tokenizer.ggml.tokens"][i] for name, i in ids.items()}
    said = {"tokenizer_config.json": config, "generation_config.json": {f"{name}_id": i for name, i in ids.items()}}
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
    if missing := [name for name in ("tokens", "merges", "token_type") if name not in found]:
        raise FormatError(f"{path}: the tokenizer lacks {', '.join(missing)}.")
    words, merges = found["tokens"], [tuple(pair.split(" ")) for pair in found["merges"]]
    try:
        model = tokenizers.models.BPE({word: i for i, word in enumerate(words)}, merges)
    except Exception as error:  # whatever the package raises, of no class of its own
        raise FormatError(f"{path}: its tokens and merges make no tokenizer: {error}.") from error
    result = tokenizers.Tokenizer(model)
    parts = [tokenizers.pre_tokenizers.Digits(individual_digits=True)] if split == "smollm" else []
    parts.append(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False))
    result.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)
    result.decoder = tokenizers.decoders.ByteLevel()
    result.add_special_tokens([word for word, type in zip(words, found["token_type"]) if type == _CONTROL])
    return result


def _package():
    try:
        import tokenizers
    except ImportError:
        raise CapabilityError(
            "Text needs the tokenizers package, which is not installed: run pip install 'refpeft[train]'."
        ) from None
    return tokenizers
