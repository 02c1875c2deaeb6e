"""The header of a safetensors file: what it may claim, checked before anything is allocated for it.

The header is a JSON object from each tensor's name to its dtype, shape and place in the data, and ``__metadata__``, free
text (https://github.com/huggingface/safetensors#format). Tensors fill the data without gap or overlap.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from refpeft.errors import DtypeError, FormatError

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
_METADATA = "__metadata__"
CODES = {dtype.name: code for code, dtype in DTYPES.items()}
_ORDER = {code: index for index, code in enumerate(DTYPES)}

short = reprlib.Repr()
short.maxstring = short.maxother = short.maxlong = 100


class Entry(NamedTuple):
    """Where one tensor lies in the data, and how it is to be read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int


def encode(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None) -> tuple[list[str], bytes]:
    """The canonical header of ``arrays``: their names in the order of the file, and its bytes with their length.

    Raises
    ------
    DtypeError
        If a tensor has a dtype that the format does not know.
    FormatError
        If a name or the metadata is not Unicode text, a tensor is named ``__metadata__``, or the header is too long.
    """
    for name, array in arrays.items():
        if not _is_text(name) or name == _METADATA:
            raise FormatError(f"A tensor's name must be Unicode text other than {_METADATA}, got {short.repr(name)}.")
        if array.dtype.name not in CODES:
            raise DtypeError(
                f"Tensor {short.repr(name)} has dtype {array.dtype}, expected one that safetensors holds: "
                f"{', '.join(CODES)}."
            )
    header: dict[str, Any] = {}
    if metadata:
        header[_METADATA] = dict(sorted(_checked_metadata(metadata, "The metadata to write").items()))
    names = sorted(arrays, key=lambda name: (_ORDER[CODES[arrays[name].dtype.name]], name))
    start = 0
    for name in names:
        array = arrays[name]
        stop = start + array.nbytes
        header[name] = {"dtype": CODES[array.dtype.name], "shape": array.shape, "data_offsets": [start, stop]}
        start = stop
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > MAX_HEADER:
        raise FormatError(
            f"The header of {len(names)} tensors takes {len(encoded)} bytes, expected at most {MAX_HEADER}."
        )
    return names, len(encoded).to_bytes(8, "little") + encoded


def header_length(prefix: bytes | bytearray, available: int, where: str) -> int:
    """The header's length from the eight bytes before it, of which at most ``available`` can follow."""
    length, most = int.from_bytes(prefix, "little"), min(available, MAX_HEADER)
    if length > most:
        raise FormatError(
            f"{where}: a safetensors header of at most {most} bytes can follow, got the length {length}, "
            "so this is truncated or not safetensors."
        )
    return length


def parse(raw: bytes | bytearray, where: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors, in the order of their bytes, and the metadata of a header; everything but the data is checked."""
    header = _json_object(raw, where)
    metadata = _checked_metadata(header.pop(_METADATA, {}), f"{where}: {_METADATA}")
    entries = sorted(((name, _entry(name, value, where)) for name, value in header.items()), key=lambda e: e[1][2:])
    if entries and entries[0][1].start:
        name, first = entries[0]
        raise FormatError(f"{where}: tensor {short.repr(name)} starts at byte {first.start} of the data, expected 0.")
    for (before, left), (name, right) in pairwise(entries):
        if right.start != left.stop:
            raise FormatError(
                f"{where}: tensor {short.repr(name)} starts at byte {right.start} of the data, expected {left.stop}, "
                f"where tensor {short.repr(before)} ends."
            )
    return dict(entries), metadata


def data_size(entries: Mapping[str, Entry]) -> int:
    """How many bytes of data the header describes."""
    return max((entry.stop for entry in entries.values()), default=0)


def _json_object(raw: bytes | bytearray, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise FormatError(f"{where}: the header has the key {short.repr(key)} twice, expected once.")
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
        raise FormatError(f"{what} must map text to text, got {short.repr(metadata)}.")
    for key, value in metadata.items():
        if not (_is_text(key) and _is_text(value)):
            raise FormatError(f"{what} must map text to text, got {short.repr(key)}: {short.repr(value)}.")
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


def _entry(name: str, value: Any, where: str) -> Entry:
    what = f"{where}: tensor {short.repr(name)}"
    if not _is_text(name):
        raise FormatError(f"{what} must have a name of Unicode text.")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{what} must have exactly dtype, shape and data_offsets, got {short.repr(value)}.")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise FormatError(f"{what} has dtype {short.repr(code)}, expected one of {', '.join(DTYPES)}.")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_count, shape)):
        raise FormatError(
            f"{what} has shape {short.repr(shape)}, expected at most {_MAX_DIMENSIONS} integers from 0 to 2**63 - 1."
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(map(_is_count, offsets))
        or offsets[0] > offsets[1]
    ):
        raise FormatError(f"{what} has data_offsets {short.repr(offsets)}, expected [start, stop], start <= stop.")
    dtype = DTYPES[code]
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 1 << 63:
        raise FormatError(f"{what} has shape {short.repr(shape)}, expected one of fewer than 2**63 bytes.")
    start, stop = offsets
    expected = math.prod(shape) * dtype.itemsize
    if stop - start != expected:
        raise FormatError(
            f"{what} has {stop - start} bytes, expected {expected}, because it is {code} of shape {short.repr(shape)}."
        )
    return Entry(dtype, tuple(shape), start, stop)
