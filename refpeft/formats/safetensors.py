"""Safetensors bytes, read and written, bfloat16 included.

A safetensors file is an 8-byte little-endian length, a JSON header of that length, and the tensors' bytes
(https://github.com/huggingface/safetensors#format). It ends where its last tensor ends, so files can follow each other
on a stream. Whatever a header claims is checked before memory is allocated for it, and bits are never interpreted: the
payload of a NaN survives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from refpeft.errors import FormatError
from refpeft.files import atomic_file, forget, map_file
from refpeft.formats.safetensors_header import (
    CODES,
    DTYPES,
    MAX_HEADER,
    Entry,
    data_size,
    encode,
    header_length,
    parse,
    short,
)

__all__ = [
    "DTYPES",
    "MAX_HEADER",
    "Archive",
    "Lazy",
    "dumps",
    "load",
    "loads",
    "read_message",
    "save",
    "scan",
    "write_message",
]

_MESSAGE = "the safetensors message"
_CHUNK = 1 << 20


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


class Lazy:
    """The tensors of one safetensors file, read when they are asked for.

    Attributes
    ----------
    metadata : dict of str to str
        The file's free text, empty when it has none.
    """

    def __init__(self, entries: dict[str, Entry], metadata: dict[str, str], data: np.ndarray, where: str):
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
                f"{self._where}: tensor {short.repr(name)} is BOOL, whose bytes are 0 or 1, got {raw.max()}."
            )
        view = raw.view(dtype).reshape(shape)
        view.flags.writeable = False
        return view

    def forget(self) -> None:
        """Take what has been read out of memory, see `refpeft.files.forget`."""
        forget(self._data)

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise FormatError(f"{self._where}: there is no tensor {short.repr(name)} among its {len(self._entries)}.")
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
    length = header_length(prefix, max(limit - 8, 0), _MESSAGE)
    header = _read(stream, length)
    _require_length(header, length, "its header")
    entries, metadata = parse(header, _MESSAGE)
    size = data_size(entries)
    if 8 + length + size > limit:
        raise FormatError(f"{_MESSAGE}: its length is {8 + length + size} bytes, expected at most {limit}.")
    data = _read(stream, size)
    _require_length(data, size, "its tensors")
    return Lazy(entries, metadata, np.frombuffer(data, np.uint8), _MESSAGE)._archive()


def _open(data: np.ndarray, where: str) -> Lazy:
    """A whole file, its header checked against its size."""
    if data.size < 8:
        raise FormatError(f"{where}: a safetensors file starts with an 8-byte header length, got {data.size} bytes.")
    start = 8 + header_length(data[:8].tobytes(), data.size - 8, where)
    entries, metadata = parse(data[8:start].tobytes(), where)
    size, described = data.size - start, data_size(entries)
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
    names, header = encode(arrays, metadata)
    yield header
    for name in names:
        array = arrays[name]
        yield array.astype(DTYPES[CODES[array.dtype.name]], copy=False).tobytes()
