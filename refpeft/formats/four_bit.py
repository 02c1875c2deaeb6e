"""Weights in 4 bits: quantised from parts, so that no weight is in memory whole, and dequantised.

The operations are a backend's, in the variant ``bitsandbytes-cpu``. The mean of the block maxima is the reference's, whoever does
the rest: its last bits depend on the order of a sum, and so every backend gives the same weight.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refpeft.backend import Backend
from refpeft.errors import AttributeValueError, CapabilityError, DomainError, FormatError
from refpeft.formats.bitsandbytes_state import BLOCKSIZES, DTYPES
from refpeft.formats.safetensors_header import short

KINDS = ("nf4", "fp4")
"""The 4-bit formats, each a family of operations with a ``CODEBOOK``."""

_VARIANT = "bitsandbytes-cpu"


@dataclass(frozen=True, eq=False)
class Nested:
    """What double quantisation adds: maxima of the maxima (ceil(m / 256),) float32, and the offset taken off them first."""

    absmax: np.ndarray
    offset: np.float32


@dataclass(frozen=True, eq=False)
class Quantised:
    """A weight in 4 bits.

    Attributes
    ----------
    kind : str
        ``"nf4"`` or ``"fp4"``.
    packed : (ceil(n / 2),) uint8
    absmax : (m,) float32, or uint8 where ``nested``
    shape : tuple of int
    blocksize : int
    dtype : str
        What it is dequantised to: float32, bfloat16 or float16.
    nested : Nested or None
    """

    kind: str
    packed: np.ndarray
    absmax: np.ndarray
    shape: tuple[int, ...]
    blocksize: int
    dtype: str
    nested: Nested | None = None


def codebook(kind: str) -> np.ndarray:
    """The 16 codewords by code, float32.

    Raises
    ------
    CapabilityError
        If the kind is none of `KINDS`.
    """
    if kind not in KINDS:
        raise CapabilityError(f"There is no 4-bit format {kind!r} of bitsandbytes, expected {' or '.join(KINDS)}.")
    words: np.ndarray = importlib.import_module(f"refpeft.ops.{kind}").CODEBOOK
    return words.astype(np.float32) + np.float32(0)  # bitsandbytes has no -0 among them


def nested_codebook() -> np.ndarray:
    """The 256 codewords of the maxima, float32."""
    from refpeft.ops.dynamic8 import dynamic_map

    return dynamic_map().astype(np.float32)


def check(kind: str, blocksize: int, dtype: str) -> None:
    """Refuse what bitsandbytes does not have.

    Raises
    ------
    AttributeValueError
        If it is the block size or the dtype.
    CapabilityError
        If it is the kind.
    """
    if blocksize not in BLOCKSIZES:
        raise AttributeValueError(f"blocksize must be one of {', '.join(map(str, BLOCKSIZES))}, got {blocksize}.")
    if dtype not in DTYPES:
        raise AttributeValueError(f"dtype must be one of {', '.join(DTYPES)}, got {short.repr(dtype)}.")
    codebook(kind)


def quantise(
    parts: Iterable[np.ndarray],
    shape: tuple[int, ...],
    *,
    kind: str = "nf4",
    blocksize: int = 64,
    double: bool = False,
    dtype: str = "float32",
    offset: float | None = None,
    backend: Backend | None = None,
) -> Quantised:
    """Quantise a weight that comes in parts, never whole.

    Parameters
    ----------
    parts : iterable of 1-D arrays
        The weight, flattened row by row, in pieces of any length.
    shape : tuple of int
    kind : str
    blocksize : int
    double : bool
        Whether the maxima are quantised as well.
    dtype : str
        What it is to be dequantised to.
    offset : float, optional
        In place of the reference's mean of the maxima.
    backend : Backend, optional
        Who runs the operations; the reference where not given.

    Raises
    ------
    AttributeValueError, CapabilityError
        As `check` does, or if the backend has no operations of that kind.
    DomainError
        If an element is not finite.
    FormatError
        If the parts have more or fewer elements than the shape.
    """
    check(kind, blocksize, dtype)
    operation, size = _Runner(backend), math.prod(shape)
    packed, absmax = np.empty((size + 1) // 2, np.uint8), np.empty(-(-size // blocksize), np.float32)
    done = 0
    for part in in_multiples(parts, blocksize):
        start, done = done, done + part.size
        if done > size:
            break
        _require_finite(part)
        codes, maxima = operation(f"{kind}.quantize", part.astype(np.float32), blocksize=blocksize, variant=_VARIANT)
        packed[start // 2 : (done + 1) // 2] = codes
        absmax[start // blocksize : -(-done // blocksize)] = maxima
    if done != size:
        raise FormatError(f"A weight of shape {tuple(shape)} has {size} elements, but more or fewer came.")
    plain = Quantised(kind, packed, absmax, tuple(shape), blocksize, dtype)
    return _nest(plain, offset, operation) if double and size else plain


def _require_finite(part: np.ndarray) -> None:
    bad = part[~np.isfinite(part)]
    if bad.size:
        raise DomainError(f"Only finite numbers are quantised, got {bad[0]}.")


def _nest(plain: Quantised, offset: float | None, operation: _Runner) -> Quantised:
    """The weight with its maxima quantised."""
    absmax = plain.absmax
    mean = _Runner(None)("nf4.offset", absmax)[0] if offset is None else np.asarray(offset, np.float32)
    codes, absmax2 = operation("nf4.double_quantize", absmax, mean, variant=_VARIANT)
    return replace(plain, absmax=codes, nested=Nested(absmax2, np.float32(mean)))


def dequantise(weight: Quantised, backend: Backend | None = None) -> np.ndarray:
    """The weight in its shape and dtype."""
    operation, absmax = _Runner(backend), weight.absmax
    if weight.nested is not None:
        absmax = operation("nf4.double_dequantize", absmax, weight.nested.absmax, np.asarray(weight.nested.offset))[0]
    size = math.prod(weight.shape)
    options = {"n": size, "blocksize": weight.blocksize, "dtype": weight.dtype}
    return operation(f"{weight.kind}.dequantize", weight.packed, absmax, **options)[0].reshape(weight.shape)


class _Runner:
    """Calls operations of a backend with host arrays."""

    def __init__(self, backend: Backend | None):
        if backend is None:
            from refpeft.reference import ReferenceBackend

            backend = ReferenceBackend()
        self.backend, self.known = backend, backend.operations()

    def __call__(self, name: str, *arrays: np.ndarray, **attributes: Any) -> list[np.ndarray]:
        if name not in self.known:
            raise CapabilityError(f"backend {self.backend.name!r} does not implement {name}.")
        device = self.backend.devices()[0]
        own = [self.backend.asarray(array, device) for array in arrays]
        outputs, _ = self.known[name].forward(*own, residuals=False, **attributes)
        return [self.backend.to_numpy(output) for output in outputs]


def in_multiples(parts: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same elements in pieces whose lengths are multiples of ``size``, but for the last."""
    rest = np.empty(0, np.float32)
    for part in parts:
        joined = np.concatenate([rest, part]) if rest.size else part
        whole = joined.size - joined.size % size
        if whole:
            yield joined[:whole]
        rest = joined[whole:]
    if rest.size:
        yield rest
