"""Writing a 4-bit checkpoint: piece by piece, to be resumed where it was killed, and under its name only when it is whole.

Each tensor becomes a part, a file of its own; the parts of a shard are joined to one file; and the folder of all shards is
renamed at the end. Part and shard are written under a temporary name, synced and renamed: whatever is there is whole, and a run
that finds it goes on with what is missing (`refpeft.convert.partial`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from refpeft import __version__
from refpeft.backend import Backend
from refpeft.convert.partial import begin
from refpeft.convert.settings import with_quantisation
from refpeft.convert.source import Source, Tensor
from refpeft.errors import DomainError, RefpeftError
from refpeft.files import atomic_file, atomic_write
from refpeft.formats import bitsandbytes, four_bit, safetensors
from refpeft.formats.safetensors_header import encode
from refpeft.numerics.formats import FORMATS

_DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How tensors are converted.

    Attributes
    ----------
    kind : str
        nf4 or fp4.
    blocksize : int
    double : bool
        Whether the maxima are quantised as well.
    dtype : str or None
        What every tensor is rounded to first; None leaves each in its own.
    shard : int
        About as many bytes a file holds.
    """

    kind: str = "nf4"
    blocksize: int = 64
    double: bool = False
    dtype: str | None = None
    shard: int = 5 * 10**9

    def __post_init__(self):
        four_bit.check(self.kind, self.blocksize, self.dtype or "float32")


@dataclass(frozen=True)
class Written:
    """What a conversion did: how many tensors there are, how many of them 4-bit, how many an earlier run had left, and bytes."""

    tensors: int
    quantised: int
    resumed: int
    bytes_before: int
    bytes_after: int


def convert(
    source: Source,
    chosen: frozenset[str],
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    restart: bool = False,
    backend: Backend | None = None,
    advance: Callable[[int], None] = lambda elements: None,
) -> Written:
    """Write ``source`` as a 4-bit checkpoint to the new folder ``out``.

    Parameters
    ----------
    source : Source
    chosen : frozenset of str
        The tensors that are quantised.
    out : path-like
        Must not exist.
    settings : Settings
    restart : bool
        Whether to begin anew where an earlier run was killed.
    backend : Backend, optional
        Who runs the operations.
    advance : callable
        Told of elements that are done.

    Raises
    ------
    FormatError
        If ``out`` exists, its parent does not, or an earlier run there had another plan.
    DomainError
        If an element that is to be quantised is not finite.
    CapabilityError
        If the backend has no operations of that kind.
    """
    out = Path(os.path.abspath(out))
    partial = begin(out, _plan(source, chosen, settings, backend), restart=restart)
    try:
        resumed, total = _write_shards(partial, source, chosen, settings, backend, advance)
        _write_beside(partial / "done", source, chosen, settings)
    except RefpeftError:  # which it would meet again
        shutil.rmtree(partial)
        raise
    os.rename(partial / "done", out)
    shutil.rmtree(partial)
    before = sum(t.elements * t.dtype.itemsize for t in source.tensors.values())
    return Written(len(source.tensors), len(chosen), resumed, before, total)


def _write_shards(partial: Path, source: Source, chosen, settings: Settings, backend, advance) -> tuple[int, int]:
    """Every shard with its tensors, as far as they are not there; how many tensors were, and the bytes of all."""
    shards = _shards(source, chosen, settings)
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
                _write_part(part, name, source.tensors[name], name in chosen, settings, backend)
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


def _plan(source: Source, chosen: frozenset[str], settings: Settings, backend: Backend | None) -> bytes:
    """All that the result depends on; the files of the model by size and time."""
    stats = {os.path.abspath(path): os.stat(path) for path in source.weights}
    plan = {
        "refpeft": __version__,
        "backend": "reference" if backend is None else backend.name,
        "weights": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()],
        "chosen": sorted(chosen),
        **asdict(settings),
    }
    return json.dumps(plan, indent=2).encode()


def _shards(source: Source, chosen: frozenset[str], settings: Settings) -> list[list[str]]:
    """The tensors' names, in files of about ``settings.shard`` bytes."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in source.tensors.items():
        bits = 4 + 32 / settings.blocksize if name in chosen else 8 * _stored(tensor, settings).itemsize
        bytes = int(tensor.elements * bits / 8)
        if shards[-1] and size + bytes > settings.shard:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes
    return shards


def _stored(tensor: Tensor, settings: Settings) -> np.dtype:
    """The dtype in which a tensor goes on."""
    floating = tensor.dtype.name in FORMATS
    return np.dtype(_DTYPES[settings.dtype]) if floating and settings.dtype is not None else tensor.dtype


def _rounded(tensor: Tensor, dtype: np.dtype) -> Iterator[np.ndarray]:
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in tensor.pieces():
            yield piece.astype(dtype, copy=False)


def _write_part(
    path: Path, name: str, tensor: Tensor, quantised: bool, settings: Settings, backend: Backend | None
) -> None:
    """One tensor's file: its 4-bit tensors, or itself."""
    dtype = _stored(tensor, settings)
    pieces = _rounded(tensor, dtype)
    if quantised:
        stated = dtype.name if dtype.name in _DTYPES else "float32"
        try:
            weight = four_bit.quantise(
                pieces,
                tensor.shape,
                kind=settings.kind,
                blocksize=settings.blocksize,
                double=settings.double,
                dtype=stated,
                backend=backend,
            )
        except DomainError:
            raise DomainError(f"Tensor {name} has an element that is not finite, so it cannot be quantised.") from None
        safetensors.save(path, bitsandbytes.encode(name, weight))
        return
    like = np.broadcast_to(np.zeros((), dtype), tensor.shape)
    with atomic_file(path) as file:
        file.write(encode({name: like}, None)[1])
        for piece in pieces:
            file.write(piece.tobytes())


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


def _write_beside(folder: Path, source: Source, chosen: frozenset[str], settings: Settings) -> None:
    """The configuration, and copies of the files that stood beside the weights."""
    if source.config is not None:
        kept = [n for n, t in source.tensors.items() if len(t.shape) == 2 and n.endswith(".weight") and n not in chosen]
        config = with_quantisation(source.config, settings.kind, settings.double, settings.dtype, kept)
        _write_json(folder / "config.json", config)
    for path in source.beside:
        with open(path, "rb") as reader, atomic_file(folder / path.name) as writer:
            shutil.copyfileobj(reader, writer)


def _write_json(path: Path, value: Any) -> None:
    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())
