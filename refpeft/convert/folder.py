"""Writing a model anew: tensor by tensor, to be resumed where it was killed, and under its name only when it is whole.

Each tensor becomes a part, a file of its own; the parts of a shard are joined to one file; and the folder of all shards is
renamed at the end. Part and shard are written under a temporary name, synced and renamed: whatever is there is whole, and a run
that finds it goes on with what is missing (`refpeft.convert.partial`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from refpeft import __version__
from refpeft.convert.partial import begin, remove
from refpeft.convert.source import Source, Tensor
from refpeft.errors import AttributeValueError, RefpeftError
from refpeft.files import atomic_file, atomic_write
from refpeft.formats import safetensors
from refpeft.formats.safetensors_header import encode
from refpeft.numerics.formats import FORMATS

DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
SHARD = 5 * 10**9
"""About as many bytes a file holds where nothing else is said."""


class Rewriting(Protocol):
    """What becomes of a model."""

    def plan(self) -> dict[str, Any]:
        """All that the result depends on beside the model, as JSON can say it."""
        ...

    def size(self, name: str, tensor: Tensor) -> int:
        """About how many bytes stand for a tensor."""
        ...

    def write(self, path: Path, name: str, tensor: Tensor) -> None:
        """Write what stands for a tensor as a safetensors file."""
        ...

    def config(self, source: Source) -> dict[str, Any]:
        """The new ``config.json``."""
        ...


def rewrite(
    source: Source,
    work: Rewriting,
    out: str | os.PathLike[str],
    *,
    shard: int = SHARD,
    beside: Mapping[str, bytes] = MappingProxyType({}),
    restart: bool = False,
    advance: Callable[[int], None] = lambda elements: None,
) -> tuple[int, int]:
    """Write ``source`` anew to the new folder ``out``.

    Parameters
    ----------
    source : Source
    work : Rewriting
    out : path-like
        Must not exist.
    shard : int
        About as many bytes a file holds.
    beside : mapping of str to bytes
        Files to write beside those that stood beside the model's own.
    restart : bool
        Whether to begin anew where an earlier run was killed.
    advance : callable
        Told of elements that are done.

    Returns
    -------
    resumed, bytes : int
        How many tensors an earlier run had left, and how many bytes all take.

    Raises
    ------
    FormatError
        If ``out`` exists, its parent does not, or an earlier run there had another plan.
    RefpeftError
        Whatever the work refuses.
    """
    out = Path(os.path.abspath(out))
    partial, leave = begin(out, _plan(source, work, shard), restart=restart)
    try:
        written = _write_shards(partial, source, work, shard, advance)
        _write_beside(partial / "done", source, work, beside)
        os.rename(partial / "done", out)
        remove(partial)
    except RefpeftError:  # which it would meet again
        remove(partial)
        raise
    finally:
        leave()
    return written


def require_dtype(dtype: str | None) -> None:
    """Refuse what tensors cannot be rounded to.

    Raises
    ------
    AttributeValueError
        If it is none of `DTYPES`.
    """
    if dtype is not None and dtype not in DTYPES:
        raise AttributeValueError(f"dtype must be one of {', '.join(DTYPES)}, but {dtype!r} came.")


def stored(tensor: Tensor, dtype: str | None) -> np.dtype:
    """The dtype in which a tensor goes on: ``dtype``, if it holds floating-point numbers and there is one."""
    return np.dtype(DTYPES[dtype]) if tensor.dtype.name in FORMATS and dtype is not None else tensor.dtype


def rounded(tensor: Tensor, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The tensor's pieces in another dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in tensor.pieces():
            yield piece.astype(dtype, copy=False)


def copy(path: Path, name: str, tensor: Tensor, dtype: np.dtype) -> None:
    """Write a tensor as it is stored but for its dtype, without reading it whole unless it has to be turned."""
    if tensor.turned:
        with np.errstate(over="ignore", invalid="ignore"):
            safetensors.save(path, {name: tensor.whole(dtype).T})
        return
    like = np.broadcast_to(np.zeros((), dtype), tensor.shape)
    with atomic_file(path) as file:
        file.write(encode({name: like}, None)[1])
        for piece in rounded(tensor, dtype):
            file.write(piece.tobytes())


def _write_shards(partial: Path, source: Source, work: Rewriting, size: int, advance) -> tuple[int, int]:
    """Every shard with its tensors, as far as they are not there; how many tensors were, and the bytes of all."""
    shards = _shards(source, work, size)
    numbers = {name: number for number, name in enumerate(source.tensors)}
    resumed, total = 0, 0
    placed: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        parts = {name: partial / "parts" / f"{numbers[name]:06}.safetensors" for name in names}
        shard = partial / "done" / file
        for name, part in parts.items():
            if shard.exists() or part.exists():
                resumed += 1
            else:
                work.write(part, name, source.tensors[name])
            advance(source.tensors[name].elements)
        if not shard.exists():
            _join(shard, list(parts.values()))
        for part in parts.values():
            part.unlink(missing_ok=True)
        lazy = safetensors.scan(shard)
        placed |= dict.fromkeys(lazy.names(), file)
        total += sum(math.prod(lazy.shape(name)) * lazy.dtype(name).itemsize for name in lazy)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        _write_json(partial / "done" / "model.safetensors.index.json", index)
    return resumed, total


def _plan(source: Source, work: Rewriting, shard: int) -> bytes:
    """All that the result depends on; the files of the model by size and time."""
    stats = {os.path.abspath(path): os.stat(path) for path in source.weights}
    weights = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()]
    return json.dumps({"refpeft": __version__, "weights": weights, "shard": shard, **work.plan()}, indent=2).encode()


def _shards(source: Source, work: Rewriting, size: int) -> list[list[str]]:
    """The tensors' names, in files of about ``size`` bytes."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in source.tensors.items():
        bytes = work.size(name, tensor)
        if shards[-1] and filled + bytes > size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += bytes
    return shards


def _join(path: Path, parts: list[Path]) -> None:
    """A safetensors file of all that the parts hold, copied without being read whole."""
    sources = {name: lazy for lazy in map(safetensors.scan, parts) for name in lazy}
    names, header = encode({name: lazy[name] for name, lazy in sources.items()}, {"format": "pt"})
    with atomic_file(path) as file:
        file.write(header)
        for name in names:
            raw = sources[name][name].reshape(-1).view(np.uint8)
            for start in range(0, raw.size, 1 << 20):
                file.write(raw[start : start + (1 << 20)].data)
                sources[name].forget()


def _write_beside(folder: Path, source: Source, work: Rewriting, beside: Mapping[str, bytes]) -> None:
    """The configuration, copies of the files that stood beside the weights, and what else is to."""
    if source.config is not None:
        _write_json(folder / "config.json", work.config(source))
    for path in source.beside:
        with open(path, "rb") as reader, atomic_file(folder / path.name) as writer:
            shutil.copyfileobj(reader, writer)
    for name, content in beside.items():
        atomic_write(folder / name, content)


def _write_json(path: Path, value: Any) -> None:
    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())
