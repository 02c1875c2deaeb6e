"""Weights from GGUF files, dequantised by the ``gguf`` package.

The header is read here, where every count, offset and size is checked against the file before anything is allocated
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); the package's own code only dequantises. Little-endian
files of version 2 and 3 are read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from refpeft.errors import CapabilityError, FormatError
from refpeft.files import forget, map_file

_PLAIN: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_MAX_DIMENSIONS = 4
_MAX_NESTING = 8


class _Entry(NamedTuple):
    """Where one tensor lies in the file, and how it is to be read."""

    encoding: Any
    shape: tuple[int, ...]
    start: int
    stop: int


class Lazy:
    """The tensors of one GGUF file, dequantised when they are asked for.

    Attributes
    ----------
    metadata : dict
        The file's key-value pairs: numbers, text, and arrays (lists where they hold text or arrays).
    """

    def __init__(self, data: np.ndarray, where: str):
        self._package = _gguf()
        self._data = data
        self._where = where
        cursor = _Cursor(data, where)
        tensors, pairs = cursor.preamble()
        self.metadata = cursor.metadata(pairs)
        self._entries = cursor.tensors(tensors, self.metadata.get("general.alignment", 32), self._package)

    def names(self) -> list[str]:
        """The tensors' names, in the order of the file."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor ``name``, in NumPy's order (GGUF stores it reversed)."""
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype that reading ``name`` gives: float32, or the tensor's own where that is float64 or an integer."""
        return _PLAIN.get(self._entry(name).encoding.name, np.dtype(np.float32))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor ``name``, dequantised; a tensor that is not quantised may be a read-only view of the file.

        Raises
        ------
        FormatError
            If the file has no such tensor.
        CapabilityError
            If the package cannot dequantise its encoding.
        """
        _, shape, start, stop = self._entry(name)
        return self._values(name, self._data[start:stop], shape)

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows ``first`` to ``last`` - 1 of a matrix, dequantised without the others."""
        _, (count, width), start, stop = self._entry(name)
        size = (stop - start) // max(count, 1)
        return self._values(name, self._data[start + first * size : start + last * size], (last - first, width))

    def forget(self) -> None:
        """Take what has been read out of memory, see `refpeft.files.forget`."""
        forget(self._data)

    def _values(self, name: str, raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        encoding, dtype = self._entry(name).encoding, self.dtype(name)
        if not raw.size:
            return np.zeros(shape, dtype)
        if encoding.name in _PLAIN:
            return raw.view(dtype).reshape(shape)
        rows = raw.reshape(*shape[:-1], -1)
        try:
            with np.errstate(all="ignore"):
                values: np.ndarray = self._package.dequantize(rows, encoding)
                return values.reshape(shape)
        except NotImplementedError:
            raise CapabilityError(
                f"{self._where}: tensor {name!r} is stored as {encoding.name}, which the installed gguf package "
                "cannot dequantise."
            ) from None

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise FormatError(f"{self._where}: there is no tensor {name[:100]!r} among its {len(self._entries)}.")
        return self._entries[name]


def scan(path: str | os.PathLike[str]) -> Lazy:
    """Map a GGUF file into memory and check its header against the file's size.

    Raises
    ------
    FormatError
        If the file is truncated or malformed.
    CapabilityError
        If the ``gguf`` package is not installed.
    """
    return Lazy(map_file(path), os.fspath(path))


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise CapabilityError(
            "Reading a GGUF file needs the gguf package, which is not installed: run pip install 'refpeft[gguf]'."
        ) from None
    return gguf


class _Cursor:
    """Reads a GGUF header from front to back and never past its end."""

    def __init__(self, data: np.ndarray, where: str):
        self.data = data.data
        self.where = where
        self.position = 0

    def take(self, size: int, what: str) -> memoryview:
        if size > len(self.data) - self.position:
            raise FormatError(
                f"{self.where}: {what} needs {size} bytes at byte {self.position}, "
                f"got a file of {len(self.data)} bytes."
            )
        self.position += size
        return self.data[self.position - size : self.position]

    def integer(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def count(self, least: int, what: str) -> int:
        """A number of things of at least ``least`` bytes each, which must fit in the rest of the file."""
        count = self.integer(8, what)
        left = len(self.data) - self.position
        if count * least > left:
            raise FormatError(
                f"{self.where}: {what} is {count}, expected at most {left // least} in a file of its size."
            )
        return count

    def text(self, what: str, errors: str = "strict") -> str:
        raw = self.take(self.integer(8, f"the length of {what}"), what)
        try:
            return str(raw, "utf-8", errors)
        except UnicodeDecodeError:
            raise FormatError(f"{self.where}: {what} must be UTF-8, got {bytes(raw[:40])!r}.") from None

    def preamble(self) -> tuple[int, int]:
        """The numbers of tensors and of key-value pairs."""
        magic = bytes(self.take(4, "the magic number"))
        if magic != b"GGUF":
            raise FormatError(f"{self.where}: a GGUF file starts with b'GGUF', got {magic!r}.")
        version = self.integer(4, "the version")
        if version not in (2, 3):
            raise FormatError(f"{self.where}: the GGUF version must be 2 or 3 (little-endian), got {version}.")
        return self.count(24, "the number of tensors"), self.count(13, "the number of key-value pairs")

    def metadata(self, pairs: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.text("a key")
            if key in found:
                raise FormatError(f"{self.where}: the key {key[:100]!r} comes twice, expected once.")
            what = f"the value of {key[:100]!r}"
            found[key] = self.value(self.integer(4, f"the type of {what}"), what)
        return found

    def value(self, kind: int, what: str, nesting: int = 0) -> Any:
        if kind == _STRING:
            return self.text(what, "surrogateescape")
        if kind in _SCALARS:
            return self.scalars(kind, 1, what)[0].item()
        if kind != _ARRAY or nesting == _MAX_NESTING:
            raise FormatError(
                f"{self.where}: {what} must have a type from 0 to 12, arrays nested at most {_MAX_NESTING} deep, "
                f"got the type {kind}."
            )
        kind = self.integer(4, f"the type of {what}")
        if kind in _SCALARS:
            return self.scalars(kind, self.count(_SCALARS[kind].itemsize, f"the length of {what}"), what)
        return [self.value(kind, what, nesting + 1) for _ in range(self.count(8, f"the length of {what}"))]

    def scalars(self, kind: int, count: int, what: str) -> np.ndarray:
        values: np.ndarray = np.frombuffer(self.take(count * _SCALARS[kind].itemsize, what), _SCALARS[kind])
        return values.astype(bool) if kind == _BOOL else values.copy()

    def tensors(self, count: int, alignment: Any, package: ModuleType) -> dict[str, _Entry]:
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise FormatError(f"{self.where}: general.alignment must be a power of two, got {str(alignment)[:100]!r}.")
        found: dict[str, _Entry] = {}
        for _ in range(count):
            name = self.text("a tensor's name")
            if name in found:
                raise FormatError(f"{self.where}: tensor {name[:100]!r} comes twice, expected once.")
            found[name] = self.tensor(f"tensor {name[:100]!r}", alignment, package)
        base = -(-self.position // alignment) * alignment
        return self.placed(found, base)

    def tensor(self, what: str, alignment: int, package: ModuleType) -> _Entry:
        """A tensor's description, its place relative to the start of the data."""
        dimensions = self.integer(4, f"the number of dimensions of {what}")
        if dimensions > _MAX_DIMENSIONS:
            raise FormatError(f"{self.where}: {what} has {dimensions} dimensions, expected at most {_MAX_DIMENSIONS}.")
        shape = tuple(self.integer(8, f"the shape of {what}") for _ in range(dimensions))[::-1]
        kind, start = self.integer(4, f"the type of {what}"), self.integer(8, f"the offset of {what}")
        try:
            encoding = package.GGMLQuantizationType(kind)
        except ValueError:
            raise FormatError(
                f"{self.where}: {what} has type {kind}, which the installed gguf package does not know."
            ) from None
        block, size = package.GGML_QUANT_SIZES[encoding]
        row = shape[-1] if shape else 1
        if row % block:
            raise FormatError(
                f"{self.where}: {what} has rows of {row} values, expected a multiple of the {block} of {encoding.name}."
            )
        if math.prod(max(length, 1) for length in shape) * 8 >= 1 << 63:
            raise FormatError(f"{self.where}: {what} has shape {shape}, expected one of fewer than 2**63 bytes.")
        if start % alignment:
            raise FormatError(f"{self.where}: {what} has offset {start}, expected a multiple of {alignment}.")
        return _Entry(encoding, shape, start, start + math.prod(shape) // block * size)

    def placed(self, entries: dict[str, _Entry], base: int) -> dict[str, _Entry]:
        """The tensors at their places in the file, which must lie in it and apart."""
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
            if entry.start < end:
                raise FormatError(
                    f"{self.where}: tensor {name[:100]!r} has offset {entry.start}, expected at least {end}, "
                    "where the one before it ends."
                )
            end = entry.stop
            if base + end > len(self.data):
                raise FormatError(
                    f"{self.where}: tensor {name[:100]!r} ends at byte {base + end}, "
                    f"got a file of {len(self.data)} bytes."
                )
        return {
            name: entry._replace(start=base + entry.start, stop=base + entry.stop) for name, entry in entries.items()
        }
