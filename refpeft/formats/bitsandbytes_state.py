"""The JSON state beside a 4-bit weight of bitsandbytes: what it may say, checked before anything is computed with it."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np

from refpeft.errors import FormatError
from refpeft.formats.safetensors_header import short

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = ("float32", "bfloat16", "float16")
NESTED = 256
"""Block size of the maxima under double quantisation."""

_LONGEST = 1 << 16


class State(NamedTuple):
    """What the state says; ``offset`` is 0 where it is not ``nested``."""

    blocksize: int
    dtype: str
    shape: tuple[int, ...]
    nested: bool
    offset: float


def read_state(raw: np.ndarray, kind: str, what: str) -> State:
    """Read and check a state.

    Raises
    ------
    FormatError
        If it is no JSON object, or a value is missing or not one that bitsandbytes writes.
    """
    if raw.dtype != np.uint8 or raw.size > _LONGEST:
        raise FormatError(f"{what}: its state must be at most {_LONGEST} bytes, got {raw.size} of {raw.dtype.name}.")
    try:
        found = json.loads(raw.tobytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FormatError(f"{what}: its state must be a JSON object, got {short.repr(raw.tobytes())}.")

    def require(key: str, holds: bool, expected: Any) -> None:
        if not holds:
            raise FormatError(f"{what}: {key} in its state must be {expected}, got {short.repr(found.get(key))}.")

    blocksize, shape, offset = found.get("blocksize"), found.get("shape"), found.get("nested_offset", 0.0)
    nested = "nested_offset" in found
    require("quant_type", found.get("quant_type") == kind, repr(kind))
    require(
        "blocksize", type(blocksize) is int and blocksize in BLOCKSIZES, f"one of {', '.join(map(str, BLOCKSIZES))}"
    )
    require("dtype", found.get("dtype") in DTYPES, f"one of {', '.join(DTYPES)}")
    sizes = shape if isinstance(shape, list) and all(type(s) is int and 0 <= s < 1 << 40 for s in shape) else [1 << 62]
    require("shape", math.prod(sizes) < 1 << 62, "a list of sizes")
    if nested:
        require("nested_blocksize", found.get("nested_blocksize") == NESTED, NESTED)
        require("nested_dtype", found.get("nested_dtype") == "float32", "'float32'")
        finite = type(offset) in (int, float) and abs(offset) <= float(np.finfo(np.float32).max)
        require("nested_offset", finite, "a float32 number")
    return State(found["blocksize"], found["dtype"], tuple(sizes), nested, float(offset))
