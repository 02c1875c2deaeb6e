"""Hostile and truncated files, each as (name, bytes): every one must be refused with one sentence."""

from __future__ import annotations

import json
import struct
from typing import Any


def pack(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with any header: an object to be dumped, text or raw bytes."""
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(dtype: Any = "F32", shape: Any = (1,), data_offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    """One tensor's entry in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets, **more}


def one(data: bytes = bytes(4), **entry: Any) -> bytes:
    """A safetensors file of one tensor, ``a``."""
    return pack({"a": tensor(**entry)}, data)


_ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

SAFETENSORS: list[tuple[str, bytes]] = [
    ("empty file", b""),
    ("seven bytes", bytes(7)),
    ("no header", bytes(8)),
    ("header length beyond the file", pack("{}", length=3)),
    ("header length of 2**63", pack("{}", length=1 << 63)),
    ("header length of 2**64 - 1", pack("{}", length=(1 << 64) - 1)),
    ("header length over 100 MB", pack("{}", length=100_000_001)),
    ("a zip archive", b"PK\x03\x04" + bytes(60)),
    ("header of UTF-16", pack("{}".encode("utf-16"))),
    ("header with a byte-order mark", pack(b"\xef\xbb\xbf{}")),
    ("header of invalid UTF-8", pack(b'{"\xff":1}')),
    ("header of invalid JSON", pack("{")),
    ("header with a leading space", pack(" {}")),
    ("header that is a list", pack([])),
    ("header that is null", pack("null")),
    ("two headers", pack("{}{}")),
    ("deeply nested lists", pack('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")),
    ("deeply nested objects", pack('{"a":' * 100_000 + "1" + "}" * 100_000)),
    ("deeply nested and unclosed", pack('{"a":' + "[" * 1_000_000)),
    ("nested just within Python's reach", pack({"a": tensor(shape=json.loads("[" * 200 + "]" * 200))}, bytes(4))),
    ("an integer of 10,000 digits", pack('{"a":' + "9" * 10_000 + "}")),
    ("the same tensor twice", pack(f'{{"a":{_ENTRY},"a":{_ENTRY}}}', bytes(4))),
    ("the same key twice in a tensor", pack(f'{{"a":{{"dtype":"U8",{_ENTRY[1:]}}}', bytes(4))),
    ("metadata twice", pack('{"__metadata__":{},"__metadata__":{}}')),
    ("a lone surrogate as name", pack(f'{{"\\ud800":{_ENTRY}}}', bytes(4))),
    ("metadata that is a list", pack({"__metadata__": []})),
    ("metadata that is null", pack({"__metadata__": None})),
    ("metadata with a number", pack({"__metadata__": {"a": 1}})),
    ("metadata with an object", pack({"__metadata__": {"a": {}}})),
    ("metadata with a lone surrogate", pack('{"__metadata__":{"a":"\\udfff"}}')),
    ("tensor that is a number", pack({"a": 1})),
    ("tensor without shape", pack({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4))),
    ("tensor with an unknown key", one(strides=[1])),
    ("unknown dtype", one(dtype="F8_E4M3")),
    ("dtype in lower case", one(dtype="f32")),
    ("dtype that is a number", one(dtype=32)),
    ("dtype that is a list", one(dtype=["F32"])),
    ("shape that is a number", one(shape=1)),
    ("shape that is an object", one(shape={})),
    ("shape with a negative entry", one(shape=[-1])),
    ("shape with two negative entries", one(shape=[-1, -1])),
    ("shape with a float", one(shape=[1.0])),
    ("shape with infinity", pack('{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', bytes(4))),
    ("shape with a bool", one(shape=[True])),
    ("shape with text", one(shape=["1"])),
    ("shape with null", one(shape=[None])),
    ("shape with 2**63", one(shape=[1 << 63])),
    ("shape with 10**400", one(shape=[10**400])),
    (
        "shape whose product is 2**64 + 1 elements",
        one(b"1", dtype="U8", shape=[274177, 67280421310721], data_offsets=[0, 1]),
    ),
    ("shape whose product wraps round to zero", one(b"", dtype="U8", shape=[1 << 32, 1 << 32], data_offsets=[0, 0])),
    ("empty tensor of absurd shape", one(b"", shape=[0, 1 << 62, 1 << 62], data_offsets=[0, 0])),
    ("shape of 100,000 dimensions", one(shape=[1] * 100_000)),
    ("shape larger than the offsets", one(shape=[2])),
    ("shape smaller than the offsets", one(shape=[0])),
    ("offsets of one entry", one(data_offsets=[4])),
    ("offsets of three entries", one(data_offsets=[0, 2, 4])),
    ("offsets that are text", one(data_offsets="04")),
    ("offsets that are bools", one(dtype="U8", data_offsets=[False, True])),
    ("offsets that are floats", one(data_offsets=[0.0, 4.0])),
    ("offsets in reverse", one(data_offsets=[4, 0])),
    ("negative offset", one(data_offsets=[-4, 0])),
    ("offset of 2**63", one(data_offsets=[1 << 63, (1 << 63) + 4])),
    ("offsets that do not start at zero", one(bytes(8), data_offsets=[4, 8])),
    ("offsets beyond the data", one(bytes(3))),
    ("a terabyte that is not there", one(bytes(4), shape=[1 << 38], data_offsets=[0, 1 << 40])),
    ("trailing byte", one(bytes(5))),
    ("trailing byte after no tensors", pack({}, b"\0")),
    ("equal offsets", pack({"a": tensor(), "b": tensor()}, bytes(4))),
    ("overlapping offsets", pack({"a": tensor(), "b": tensor(data_offsets=(2, 6))}, bytes(6))),
    (
        "nested offsets",
        pack({"a": tensor(shape=(3,), data_offsets=(0, 12)), "b": tensor(data_offsets=(4, 8))}, bytes(12)),
    ),
    ("gap between tensors", pack({"a": tensor(), "b": tensor(data_offsets=(8, 12))}, bytes(12))),
    ("empty tensor inside another", pack({"a": tensor(), "b": tensor(shape=(0,), data_offsets=(2, 2))}, bytes(4))),
    ("bool of 2", one(b"\x02", dtype="BOOL", data_offsets=[0, 1])),
]


def text(value: bytes) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(value)) + value


def gguf_tensor(name: bytes = b"a", shape: tuple[int, ...] = (1,), kind: int = 0, offset: int = 0) -> bytes:
    """One tensor's description in a GGUF header; ``shape`` is in GGUF's order."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(*tensors: bytes, pairs: tuple[bytes, ...] = (), data: bytes = bytes(32), version: int = 3) -> bytes:
    """A GGUF file of these descriptions, key-value pairs and data, aligned to 32 bytes."""
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs + tensors)
    return header + bytes(-len(header) % 32) + data


def pair(kind: int, value: bytes, key: bytes = b"k") -> bytes:
    """A GGUF key-value pair."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    """A GGUF array value."""
    return struct.pack("<IQ", kind, count) + values


def counts(tensors: int, pairs: int) -> bytes:
    """A GGUF file that claims so many tensors and pairs and holds none."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + bytes(64)


_ALIGNMENT = b"general.alignment"

GGUF: list[tuple[str, bytes]] = [
    ("empty file", b""),
    ("magic number only", b"GGUF"),
    ("another magic number", b"GGML" + gguf()[4:]),
    ("version 1", gguf(version=1)),
    ("version 4", gguf(version=4)),
    ("big-endian version 3", gguf(version=3 << 24)),
    ("2**64 - 1 tensors", counts((1 << 64) - 1, 0)),
    ("2**64 - 1 pairs", counts(0, (1 << 64) - 1)),
    ("more tensors than bytes", counts(1000, 0)),
    ("a name of 2**63 bytes", gguf(struct.pack("<Q", 1 << 63))),
    ("a name of invalid UTF-8", gguf(gguf_tensor(b"\xff"))),
    ("a key of invalid UTF-8", gguf(pairs=(pair(4, bytes(4), b"\xff"),))),
    ("the same tensor twice", gguf(gguf_tensor(), gguf_tensor())),
    ("the same key twice", gguf(pairs=(pair(4, bytes(4)), pair(4, bytes(4))))),
    ("a value of unknown type", gguf(pairs=(pair(13, bytes(4)),))),
    ("an array of unknown type", gguf(pairs=(pair(9, array(99, 1)),))),
    ("an array of 2**63 numbers", gguf(pairs=(pair(9, array(12, 1 << 63)),))),
    ("an array of 2**62 texts", gguf(pairs=(pair(9, array(8, 1 << 62)),))),
    ("arrays nested 10,000 deep", gguf(pairs=(pair(9, array(9, 1) * 10_000),))),
    ("alignment of zero", gguf(gguf_tensor(), pairs=(pair(4, bytes(4), _ALIGNMENT),))),
    ("alignment of three", gguf(gguf_tensor(), pairs=(pair(4, struct.pack("<I", 3), _ALIGNMENT),))),
    ("alignment of 2**63", gguf(gguf_tensor(), pairs=(pair(10, struct.pack("<Q", 1 << 63), _ALIGNMENT),))),
    ("alignment that is text", gguf(gguf_tensor(), pairs=(pair(8, text(b"32"), _ALIGNMENT),))),
    ("alignment that is true", gguf(gguf_tensor(), pairs=(pair(7, b"\x01", _ALIGNMENT),))),
    ("tensor of 2**32 - 1 dimensions", gguf(text(b"a") + b"\xff" * 4 + bytes(16))),
    ("tensor of five dimensions", gguf(gguf_tensor(shape=(1,) * 5))),
    ("tensor of unknown type", gguf(gguf_tensor(kind=999))),
    ("tensor of a removed type", gguf(gguf_tensor(kind=4))),
    ("tensor of 2**64 - 1 values", gguf(gguf_tensor(shape=((1 << 64) - 1,)))),
    ("tensor whose size wraps round to zero", gguf(gguf_tensor(shape=(1 << 32, 1 << 32)))),
    ("empty tensor of absurd shape", gguf(gguf_tensor(shape=(0, 1 << 62, 1 << 62)))),
    ("tensor larger than the file", gguf(gguf_tensor(shape=(9,)))),
    ("rows that are no whole blocks", gguf(gguf_tensor(shape=(33,), kind=8), data=bytes(68))),
    ("quantised scalar", gguf(gguf_tensor(shape=(), kind=8), data=bytes(64))),
    ("offset beyond the file", gguf(gguf_tensor(offset=64))),
    ("offset of 2**64 - 32", gguf(gguf_tensor(offset=(1 << 64) - 32))),
    ("offset off the alignment", gguf(gguf_tensor(offset=4))),
    ("overlapping tensors", gguf(gguf_tensor(b"a", (16,)), gguf_tensor(b"b", (1,), offset=32), data=bytes(64))),
]
