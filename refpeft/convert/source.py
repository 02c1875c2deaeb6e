"""Models to convert, as one thing: named tensors that are read in pieces, a configuration, and the files beside them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refpeft.errors import FormatError
from refpeft.files import read_json, understood
from refpeft.formats import bitsandbytes, gguf, safetensors
from refpeft.formats.four_bit import Quantised, dequantise
from refpeft.formats.names import FAMILIES, GPT2, Names
from refpeft.formats.safetensors_header import short
from refpeft.numerics.formats import as_format

_TODAY = {".gamma": ".weight", ".beta": ".bias"}
_OLD = re.compile(r"\.(gamma|beta)$")
"""What BERT's first checkpoints call the parts of a LayerNorm."""

PIECE = 1 << 15
"""About as many elements are in memory at a time."""

_INDEX, _WEIGHTS, _CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
_WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ckpt"}
_INPUT_FIRST = tuple(f".{matrix}.weight" for matrix in GPT2.matrices.values())
"""GPT-2 stores these matrices as (i, o); GGUF and a 4-bit checkpoint hold (o, i)."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: its shape, the dtype of what is read, and its elements row by row, in pieces of about `PIECE`.

    One in 4 bits is read whole, by ``four_bit``; its pieces are those of what it is decoded to. A matrix (o, i) that transformers
    stores as (i, o) is ``turned``.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: Callable[[], Iterator[np.ndarray]]
    four_bit: Callable[[], Quantised] | None = None
    turned: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in which transformers stores it."""
        return self.shape[::-1] if self.turned else self.shape

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def whole(self, dtype: np.dtype[Any] | None = None) -> np.ndarray:
        """All of it, each piece rounded to the dtype as it comes."""
        array, at = np.empty(self.elements, self.dtype if dtype is None else dtype), 0
        for piece in self.pieces():
            array[at : at + piece.size] = piece.reshape(-1)
            at += piece.size
        return array.reshape(self.shape)


@dataclass(frozen=True)
class Source:
    """A model.

    Attributes
    ----------
    tensors : dict of str to Tensor
        By the names that transformers gives them.
    config : dict or None
        What its ``config.json`` holds; None for a lone safetensors file.
    weights : tuple of Path
        The files that hold its tensors.
    beside : tuple of Path
        Other files of its folder, of the tokenizer say.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    weights: tuple[Path, ...]
    beside: tuple[Path, ...] = ()

    @property
    def elements(self) -> int:
        """How many all tensors have."""
        return sum(t.elements for t in self.tensors.values())

    @property
    def bytes(self) -> int:
        """How many all tensors take."""
        return sum(t.elements * t.dtype.itemsize for t in self.tensors.values())


def digest(source: Source) -> str:
    """SHA-256 of a model: of its configuration, and of the files that hold its tensors."""
    found = hashlib.sha256(json.dumps(source.config, sort_keys=True).encode())
    for path in source.weights:
        with open(path, "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def open_model(model: str | os.PathLike[str], *, four_bit: bool = False) -> Source:
    """A safetensors file, a Hugging Face folder, its weights in one file or several, or a GGUF file.

    Parameters
    ----------
    model : path-like
    four_bit : bool
        Whether it may be a 4-bit checkpoint of bitsandbytes.

    Raises
    ------
    FormatError
        If it is none of them, malformed, or quantised in a way that is not read.
    """
    path = Path(model)
    if path.is_dir():
        source = _folder(path)
    elif not path.is_file():
        raise FormatError(
            f"There is no model {os.fspath(model)!r}: expected a safetensors file, a folder or a GGUF file."
        )
    else:
        with open(path, "rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        source = _gguf(path) if is_gguf else Source(_safetensors([path], transposed=False), None, (path,))
    found = bitsandbytes.weights(source.tensors)
    if found and four_bit:
        return _in_four_bits(source, found, os.fspath(model))
    if any(".quant_state." in n for n in source.tensors) or "quantization_config" in (source.config or {}):
        raise FormatError(f"{os.fspath(model)} is quantised already, expected a model of floating-point numbers.")
    return source


def _in_four_bits(source: Source, found: list[str], where: str) -> Source:
    """The same model with each of these 4-bit weights as one tensor, without the parts that hold it."""
    whole = {n: t for n, t in source.tensors.items() if not n.startswith(tuple(f"{w}." for w in found))}
    return replace(source, tensors=whole | {name: _decoded(source.tensors, name, where) for name in found})


def _decoded(tensors: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    """A 4-bit weight as one tensor; only its state is read before it is asked for."""
    parts = {n: t for n, t in tensors.items() if n == name or n.startswith(f"{name}.")}

    def read() -> Quantised:
        return bitsandbytes.decode(name, {n: t.whole() for n, t in parts.items()}, where)

    def pieces():
        yield dequantise(read()).reshape(-1)

    states = {n: t.whole() for n, t in parts.items() if bitsandbytes.STATE in n}
    _, state = bitsandbytes.stated(name, states, where)
    return Tensor(state.shape, as_format(state.dtype).dtype, pieces, read)


def _folder(folder: Path) -> Source:
    config = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else None
    placed: dict[str, Any] = {}
    if (folder / _WEIGHTS).is_file():  # as transformers has it, whether an index is there or not
        names = [_WEIGHTS]
    elif (folder / _INDEX).is_file():
        placed = read_json(folder / _INDEX).get("weight_map")  # type: ignore[assignment]
        if not isinstance(placed, dict) or not placed:
            raise FormatError(
                f"{folder / _INDEX}: weight_map must name a file for each tensor, got {short.repr(placed)}."
            )
        names = sorted(set(map(str, placed.values())))
        strange = [name for name in names if name != os.path.basename(name) or not (folder / name).is_file()]
        if strange:
            raise FormatError(f"{folder / _INDEX}: there is no file {short.repr(strange[0])} in the folder.")
    else:
        raise FormatError(f"{folder}: there is neither {_WEIGHTS} nor {_INDEX}; other formats are not read.")
    weights = tuple(folder / name for name in names)
    beside = tuple(
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in (_CONFIG, _INDEX) and path.suffix not in _WEIGHT_FILES
    )
    kind = (config or {}).get("model_type")
    tensors = _safetensors(list(weights), transposed=kind == "gpt2")
    if placed and (others := placed.keys() ^ tensors.keys()):
        said = "names it, but no file of the folder has it" if (name := min(others)) in placed else "does not name it"
        raise FormatError(f"{folder / _INDEX}: of the tensor {short.repr(name)}: the index {said}.")
    return Source(_with_body(tensors, FAMILIES[kind]) if kind in ("gpt2", "bert") else tensors, config, weights, beside)


def _with_body(tensors: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    """The tensors by the names of a model with its head, whether it is saved with it or without; and by today's names."""
    body = "" if any(name.startswith(f"{names.body}.") for name in tensors) else f"{names.body}."
    return {body + _OLD.sub(lambda end: _TODAY[end[0]], name): tensor for name, tensor in tensors.items()}


def _safetensors(paths: list[Path], *, transposed: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in paths:
        lazy = safetensors.scan(path)
        for name in lazy.names():
            if name in found:
                raise FormatError(f"{path}: tensor {short.repr(name)} is in another file as well.")
            turned = transposed and name.endswith(_INPUT_FIRST) and len(lazy.shape(name)) == 2
            found[name] = _turned(lazy, name) if turned else _flat(lazy, name)
    return found


def _flat(lazy: safetensors.Lazy, name: str) -> Tensor:
    def pieces():
        flat = lazy[name].reshape(-1)
        for start in range(0, flat.size, PIECE):
            yield flat[start : start + PIECE]
            lazy.forget()

    return Tensor(lazy.shape(name), lazy.dtype(name), pieces)


def _turned(lazy: safetensors.Lazy, name: str) -> Tensor:
    """A matrix by its columns."""
    i, o = lazy.shape(name)
    step = max(1, PIECE // max(i, 1))

    def pieces():
        for start in range(0, o, step):
            yield lazy[name][:, start : start + step].T.reshape(-1)
            lazy.forget()

    return Tensor((o, i), lazy.dtype(name), pieces, turned=True)


def _gguf(path: Path) -> Source:
    from refpeft.convert.from_gguf import configuration, places

    lazy = gguf.scan(path)
    with understood(path):
        config = configuration(path, lazy)
        placed = places(path, lazy, config)
    tensors = {new: _rows(lazy, old, order) for new, (old, order) in placed.items()}
    turned = _INPUT_FIRST if config["model_type"] == "gpt2" else ()
    return Source({n: replace(t, turned=n.endswith(turned)) for n, t in tensors.items()}, config, (path,))


def _rows(lazy: gguf.Lazy, name: str, order: np.ndarray | None) -> Tensor:
    """A tensor of a GGUF file, dequantised some rows at a time; ``order`` is that of the rows in each group of as many."""
    shape = lazy.shape(name)

    def pieces():
        if len(shape) != 2:
            yield lazy[name].reshape(-1)
            return
        group = 1 if order is None else order.size
        step = group * max(1, PIECE // max(shape[1] * group, 1))
        for start in range(0, shape[0], step):
            rows = lazy.rows(name, start, min(start + step, shape[0]))
            if order is not None:
                rows = rows.reshape(-1, group, shape[1])[:, order]
            yield rows.reshape(-1)
            lazy.forget()

    return Tensor(shape, lazy.dtype(name), pieces)
