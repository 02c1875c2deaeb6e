"""Safetensors bytes, read and written, bfloat16 included.

A safetensors file is an 8-byte little-endian length, a JSON header of that length, and the tensors' bytes
(https://github.com/huggingface/safetensors#format). It ends where its last tensor ends, so files can follow each other
on a stream. Whatever a header claims is checked before memory is allocated for it, and bits are never interpreted: the
payload of a NaN survives.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike

from refpeft.errors import DtypeError, FormatError
from refpeft.files import atomic_file

DTYPES: dict[str, np.dtype[Any]] = {
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""NumPy's dtype of each safetensors dtype, in the order in which a file holds them."""

MAX_HEADER = 100_000_000
"""The longest header, in bytes, that the official library accepts."""

_MAX_DIMENSIONS = 64
_MESSAGE = "the safetensors message"
_METADATA = "__metadata__"
_CHUNK = 1 << 20
_CODES = {dtype.name: code for code, dtype in DTYPES.items()}
_ORDER = {code: index for index, code in enumerate(DTYPES)}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 100


@dataclass(frozen=True)
class Archive:
    """What a safetensors file holds.

    Attributes
    ----------
    tensors : dict of str to ndarray
        The tensors in the order of the file, each an array of its own, writable and contiguous.
    metadata : dict of str to str
        The file's free text, empty when it has none.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


class _Entry(NamedTuple):
    """Where one tensor lies in the data, and how it is to be read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int


class Lazy:
    """The tensors of one safetensors file, read when they are asked for.

    Attributes
    ----------
    metadata : dict of str to str
        The file's free text, empty when it has none.
    """

    def __init__(self, entries: dict[str, _Entry], metadata: dict[str, str], data: np.ndarray, where: str):
        self._entries = entries
        self.metadata = metadata
        self._data = data
        self._where = where

    def names(self) -> list[str]:
        """The tensors' names, in the order of the file."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor ``name``."""
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of the tensor ``name``."""
        return self._entry(name).dtype

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor ``name`` as a read-only view of the file.

        Raises
        ------
        FormatError
            If the file has no such tensor, or a BOOL tensor holds a byte other than 0 and 1.
        """
        dtype, shape, start, stop = self._entry(name)
        raw = self._data[start:stop]
        if dtype.kind == "b" and raw.size and raw.max() > 1:
            raise FormatError(
                f"{self._where}: tensor {_short.repr(name)} is BOOL, whose bytes are 0 or 1, got {raw.max()}."
            )
        view = raw.view(dtype).reshape(shape)
        view.flags.writeable = False
        return view

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise FormatError(f"{self._where}: there is no tensor {_short.repr(name)} among its {len(self._entries)}.")
        return self._entries[name]

    def _archive(self) -> Archive:
        return Archive({name: self[name].copy() for name in self}, self.metadata)


def dumps(tensors: Mapping[str, ArrayLike], metadata: Mapping[str, str] | None = None) -> bytes:
    """The canonical safetensors file of ``tensors``: equal input gives equal bytes.

    Tensors are ordered as the official library orders them (by dtype as in `DTYPES`, widest first, then by name),
    metadata by key; the header is padded with spaces to a multiple of 8 bytes. Empty metadata is left out.

    Parameters
    ----------
    tensors : mapping of str to array_like
        Arrays of any layout and byte order; the dtype is one of `DTYPES`.
    metadata : mapping of str to str, optional
        Free text.

    Returns
    -------
    bytes
        The file.

    Raises
    ------
    DtypeError
        If a tensor has a dtype that the format does not know.
    FormatError
        If a name or the metadata is not Unicode text, or a tensor is named ``__metadata__``.
    """
    return b"".join(_parts(tensors, metadata))


def loads(data: bytes | bytearray | memoryview) -> Archive:
    """Read one whole safetensors file from memory.

    Raises
    ------
    FormatError
        If ``data`` is truncated, has bytes left over, or is malformed in any other way.
    """
    return _open(np.frombuffer(data, np.uint8), _MESSAGE)._archive()


def save(
    path: str | os.PathLike[str], tensors: Mapping[str, ArrayLike], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the bytes of `dumps` to ``path``, whole or not at all."""
    with atomic_file(path) as file:
        file.writelines(_parts(tensors, metadata))


def load(path: str | os.PathLike[str]) -> Archive:
    """Read a safetensors file.

    Raises
    ------
    FormatError
        If the file is truncated, has bytes left over, or is malformed in any other way.
    """
    return scan(path)._archive()


def scan(path: str | os.PathLike[str]) -> Lazy:
    """Map a safetensors file into memory and check its header against the file's size.

    Raises
    ------
    FormatError
        If the header is malformed or does not describe exactly the bytes of the file.
    """
    return _open(map_file(path), os.fspath(path))


def map_file(path: str | os.PathLike[str]) -> np.ndarray:
    """The bytes of a file as a read-only array, mapped rather than read (an empty file as an empty array)."""
    if os.stat(path).st_size == 0:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, "r").view(np.ndarray)


def write_message(
    stream: BinaryIO, tensors: Mapping[str, ArrayLike], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the bytes of `dumps` to a buffered binary stream and flush it."""
    stream.writelines(_parts(tensors, metadata))
    stream.flush()


def read_message(stream: BinaryIO, limit: int = 1 << 32) -> Archive | None:
    """Read one safetensors file from a binary stream, and not a byte more.

    Parameters
    ----------
    stream : BinaryIO
        A stream that carries safetensors files back to back.
    limit : int
        The longest message accepted, in bytes.

    Returns
    -------
    Archive or None
        The message; None when the stream ended before it began.

    Raises
    ------
    FormatError
        If the stream ends in the middle of the message, or the message is malformed or longer than ``limit``.
    """
    prefix = _read(stream, 8)
    if not prefix:
        return None
    _require_length(prefix, 8, "its header length")
    length = _header_length(prefix, max(limit - 8, 0), _MESSAGE)
    header = _read(stream, length)
    _require_length(header, length, "its header")
    entries, metadata = _parse(header, _MESSAGE)
    size = _data_size(entries)
    if 8 + length + size > limit:
        raise FormatError(f"{_MESSAGE}: its length is {8 + length + size} bytes, expected at most {limit}.")
    data = _read(stream, size)
    _require_length(data, size, "its tensors")
    return Lazy(entries, metadata, np.frombuffer(data, np.uint8), _MESSAGE)._archive()


def _open(data: np.ndarray, where: str) -> Lazy:
    """A whole file, its header checked against its size."""
    if data.size < 8:
        raise FormatError(f"{where}: a safetensors file starts with an 8-byte header length, got {data.size} bytes.")
    start = 8 + _header_length(data[:8].tobytes(), data.size - 8, where)
    entries, metadata = _parse(data[8:start].tobytes(), where)
    size, described = data.size - start, _data_size(entries)
    if described != size:
        raise FormatError(f"{where}: the header describes {described} bytes of tensors, got {size} bytes after it.")
    return Lazy(entries, metadata, data[start:], where)


def _read(stream: BinaryIO, size: int) -> bytearray:
    """Up to ``size`` bytes, fewer only at the end of the stream; memory grows with what comes, not with ``size``."""
    parts = bytearray()
    while len(parts) < size and (part := stream.read(min(size - len(parts), _CHUNK))):
        parts += part
    return parts


def _require_length(data: bytearray, expected: int, what: str) -> None:
    if len(data) < expected:
        raise FormatError(f"{_MESSAGE}: the stream ended inside {what}, expected {expected} bytes, got {len(data)}.")


def _parts(tensors: Mapping[str, ArrayLike], metadata: Mapping[str, str] | None) -> Iterator[bytes]:
    """The header, then each tensor's bytes."""
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    for name, array in arrays.items():
        if not _is_text(name) or name == _METADATA:
            raise FormatError(f"A tensor's name must be Unicode text other than {_METADATA}, got {_short.repr(name)}.")
        if array.dtype.name not in _CODES:
            raise DtypeError(
                f"Tensor {_short.repr(name)} has dtype {array.dtype}, expected one that safetensors holds: "
                f"{', '.join(_CODES)}."
            )
    header: dict[str, Any] = {}
    if metadata:
        header[_METADATA] = dict(sorted(_checked_metadata(metadata, "The metadata to write").items()))
    names = sorted(arrays, key=lambda name: (_ORDER[_CODES[arrays[name].dtype.name]], name))
    start = 0
    for name in names:
        array = arrays[name]
        stop = start + array.nbytes
        header[name] = {"dtype": _CODES[array.dtype.name], "shape": array.shape, "data_offsets": [start, stop]}
        start = stop
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > MAX_HEADER:
        raise FormatError(
            f"The header of {len(names)} tensors takes {len(encoded)} bytes, expected at most {MAX_HEADER}."
        )
    yield len(encoded).to_bytes(8, "little")
    yield encoded
    for name in names:
        array = arrays[name]
        yield array.astype(DTYPES[_CODES[array.dtype.name]], copy=False).tobytes()


def _header_length(prefix: bytes | bytearray, available: int, where: str) -> int:
    length, most = int.from_bytes(prefix, "little"), min(available, MAX_HEADER)
    if length > most:
        raise FormatError(
            f"{where}: a safetensors header of at most {most} bytes can follow, got the length {length}, "
            "so this is truncated or not safetensors."
        )
    return length


def _data_size(entries: Mapping[str, _Entry]) -> int:
    return max((entry.stop for entry in entries.values()), default=0)


def _parse(raw: bytes | bytearray, where: str) -> tuple[dict[str, _Entry], dict[str, str]]:
    """The tensors, in the order of their bytes, and the metadata of a header; everything but the data is checked."""
    header = _json_object(raw, where)
    metadata = _checked_metadata(header.pop(_METADATA, {}), f"{where}: {_METADATA}")
    entries = sorted(((name, _entry(name, value, where)) for name, value in header.items()), key=lambda e: e[1][2:])
    if entries and entries[0][1].start:
        name, first = entries[0]
        raise FormatError(f"{where}: tensor {_short.repr(name)} starts at byte {first.start} of the data, expected 0.")
    for (before, left), (name, right) in pairwise(entries):
        if right.start != left.stop:
            raise FormatError(
                f"{where}: tensor {_short.repr(name)} starts at byte {right.start} of the data, expected {left.stop}, "
                f"where tensor {_short.repr(before)} ends."
            )
    return dict(entries), metadata


def _json_object(raw: bytes | bytearray, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise FormatError(f"{where}: the header has the key {_short.repr(key)} twice, expected once.")
            found[key] = value
        return found

    if not raw.startswith(b"{"):
        raise FormatError(f"{where}: the header must be a JSON object that starts with '{{', got {bytes(raw[:8])!r}.")
    try:
        header: dict[str, Any] = json.loads(str(raw, "utf-8"), object_pairs_hook=unique)
    except FormatError:
        raise
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: the header must be UTF-8, got an invalid byte at {error.start}.") from None
    except RecursionError:
        raise FormatError(
            f"{where}: the header must be a flat JSON object, got one nested too deeply to read."
        ) from None
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{where}: the header must be JSON, got an error at character {error.pos} ({error.msg})."
        ) from None
    except ValueError:
        raise FormatError(f"{where}: the header must be JSON, got an integer of thousands of digits.") from None
    return header


def _checked_metadata(metadata: Any, what: str) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        raise FormatError(f"{what} must map text to text, got {_short.repr(metadata)}.")
    for key, value in metadata.items():
        if not (_is_text(key) and _is_text(value)):
            raise FormatError(f"{what} must map text to text, got {_short.repr(key)}: {_short.repr(value)}.")
    return dict(metadata)


def _is_text(value: Any) -> bool:
    """Whether ``value`` is a string without lone surrogates, which UTF-8 cannot carry."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _entry(name: str, value: Any, where: str) -> _Entry:
    what = f"{where}: tensor {_short.repr(name)}"
    if not _is_text(name):
        raise FormatError(f"{what} must have a name of Unicode text.")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{what} must have exactly dtype, shape and data_offsets, got {_short.repr(value)}.")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise FormatError(f"{what} has dtype {_short.repr(code)}, expected one of {', '.join(DTYPES)}.")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_count, shape)):
        raise FormatError(
            f"{what} has shape {_short.repr(shape)}, expected at most {_MAX_DIMENSIONS} integers from 0 to 2**63 - 1."
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(map(_is_count, offsets))
        or offsets[0] > offsets[1]
    ):
        raise FormatError(f"{what} has data_offsets {_short.repr(offsets)}, expected [start, stop], start <= stop.")
    dtype = DTYPES[code]
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 1 << 63:
        raise FormatError(f"{what} has shape {_short.repr(shape)}, expected one of fewer than 2**63 bytes.")
    start, stop = offsets
    expected = math.prod(shape) * dtype.itemsize
    if stop - start != expected:
        raise FormatError(
            f"{what} has {stop - start} bytes, expected {expected}, because it is {code} of shape {_short.repr(shape)}."
        )
    return _Entry(dtype, tuple(shape), start, stop)
