"""The weight matrices of a model file, whichever format it has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase

import numpy as np

from refpeft.errors import FormatError
from refpeft.formats import gguf, safetensors
from refpeft.numerics.formats import FORMATS


def matrices(spec: str, minimum: int = 2) -> Iterator[tuple[str, np.ndarray]]:
    """Every two-dimensional floating-point tensor of a safetensors or GGUF file, one at a time.

    Parameters
    ----------
    spec : str
        ``FILE`` or ``FILE:GLOB``; the glob selects tensors by name (``*`` also matches dots). The file's content, not
        its name, tells the format.
    minimum : int
        Matrices with fewer rows or columns are left out.

    Returns
    -------
    iterator of (str, ndarray)
        Name and values, in the order of the file: the file's own dtype (float64, float32, bfloat16 or float16), float32
        where it is quantised. The arrays may be read-only.

    Raises
    ------
    FormatError
        At the call, not at the first step: if there is no such file, it is malformed, or nothing in it is selected.
    """
    file, pattern = _split(spec)
    if not os.path.exists(file):
        raise FormatError(f"The weights file {file!r} does not exist.")
    if not os.path.isfile(file):
        raise FormatError(f"The weights {file!r} must be a safetensors or GGUF file, got a folder or a device.")
    tensors = _scan(file)
    matching = [name for name in tensors if fnmatchcase(name, pattern)]
    if not matching:
        raise FormatError(
            f"{file}: no tensor matches {pattern!r}, expected at least one of its {len(tensors.names())}."
        )
    selected = [name for name in matching if _is_matrix(tensors.shape(name), tensors.dtype(name), minimum)]
    if not selected:
        raise FormatError(
            f"{file}: none of the {len(matching)} tensors that match {pattern!r} is a floating-point matrix, "
            f"expected one of at least {minimum} rows and columns."
        )
    return ((name, tensors[name]) for name in selected)


def file_of(spec: str) -> str:
    """The file that ``FILE[:GLOB]`` names."""
    return _split(spec)[0]


def _split(spec: str) -> tuple[str, str]:
    """The file and the glob of ``FILE[:GLOB]``, where either may contain a colon: the longest file that exists wins."""
    colons = [at for at, character in enumerate(spec + ":") if character == ":"]
    end = next((at for at in reversed(colons) if os.path.exists(spec[:at])), colons[0])
    return spec[:end], spec[end + 1 :] or "*"


def _scan(file: str) -> safetensors.Lazy | gguf.Lazy:
    with open(file, "rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    return gguf.scan(file) if is_gguf else safetensors.scan(file)


def _is_matrix(shape: tuple[int, ...], dtype: np.dtype, minimum: int) -> bool:
    return len(shape) == 2 and min(shape) >= minimum and dtype.name in FORMATS
