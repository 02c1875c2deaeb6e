"""4-bit weights as bitsandbytes lays them out in safetensors: codes under the weight's name, their constants beside it.

For a matrix ``w`` of n elements in blocks of B, with m = ceil(n / B) block maxima:

==================================  =======  ==================  =====================================================
``w``                               U8       (ceil(n / 2), 1)    two codes a byte, the first in the high half
``w.absmax``                        F32      (m,)                block maxima; U8 codes of them if doubly quantised
``w.quant_map``                     F32      (16,)               the codewords
``w.quant_state.bitsandbytes__nf4`` U8       (length,)           JSON: quant_type, blocksize, dtype, shape, nested_...
``w.nested_absmax``                 F32      (ceil(m / 256),)    maxima of the maxima
``w.nested_quant_map``              F32      (256,)              codewords of the maxima
==================================  =======  ==================  =====================================================

What bitsandbytes writes on the CPU is the operations' variant ``bitsandbytes-cpu``, bit for bit, but for one number: the mean
of the maxima, ``nested_offset``, is a sum in float32 whose order depends on how many threads torch has. The reference's is
correctly rounded; hand in the other one where bits must match.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refpeft.backend import Backend
from refpeft.errors import AttributeValueError, CapabilityError, FormatError
from refpeft.formats.bitsandbytes_state import BLOCKSIZES, DTYPES, NESTED, read_state
from refpeft.formats.safetensors_header import short

KINDS = ("nf4", "fp4")
"""The 4-bit formats, each a family of operations with a ``CODEBOOK``."""

_STATE = "quant_state.bitsandbytes__"
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *(_STATE + kind for kind in KINDS))
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
        In place of the maxima's correctly rounded mean.
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
        if done + part.size > size:
            break
        codes, maxima = operation(f"{kind}.quantize", part.astype(np.float32), blocksize=blocksize, variant=_VARIANT)
        packed[done // 2 :][: codes.size] = codes
        absmax[done // blocksize :][: maxima.size] = maxima
        done += part.size
    else:
        if done == size:
            plain = Quantised(kind, packed, absmax, tuple(shape), blocksize, dtype)
            return _nest(plain, offset, operation) if double and size else plain
    raise FormatError(f"A weight of shape {tuple(shape)} has {size} elements, but more or fewer came.")


def _nest(plain: Quantised, offset: float | None, operation: _Runner) -> Quantised:
    absmax = plain.absmax
    mean = operation("nf4.offset", absmax)[0] if offset is None else np.asarray(offset, np.float32)
    codes, absmax2 = operation("nf4.double_quantize", absmax, mean, variant=_VARIANT)
    nested = Nested(absmax2, np.float32(mean))
    return Quantised(plain.kind, plain.packed, codes, plain.shape, plain.blocksize, plain.dtype, nested)


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


def encode(name: str, weight: Quantised) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint that hold a weight."""
    state: dict[str, Any] = {
        "quant_type": weight.kind,
        "blocksize": weight.blocksize,
        "dtype": weight.dtype,
        "shape": list(weight.shape),
    }
    tensors = {
        name: weight.packed.reshape(-1, 1),
        f"{name}.absmax": weight.absmax,
        f"{name}.quant_map": codebook(weight.kind),
    }
    if weight.nested is not None:
        tensors[f"{name}.nested_absmax"] = weight.nested.absmax
        tensors[f"{name}.nested_quant_map"] = nested_codebook()
        state |= {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": float(weight.nested.offset)}
    tensors[f"{name}.{_STATE}{weight.kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return tensors


def weights(names: Iterable[str]) -> list[str]:
    """The names of the 4-bit weights among a checkpoint's tensors, in their order."""
    known = list(names)
    stated = {name.rpartition(f".{_STATE}")[0] for name in known if _STATE in name}
    return [name for name in known if name in stated]


def decode(name: str, tensors: Mapping[str, np.ndarray] | Any, where: str = "the checkpoint") -> Quantised:
    """Read a weight back from the tensors of a checkpoint.

    Parameters
    ----------
    name : str
        The weight's.
    tensors : mapping, or what `refpeft.formats.safetensors.scan` gives
    where : str
        What messages call it.

    Raises
    ------
    FormatError
        If tensors are missing, or sizes, dtypes, codewords or the state contradict each other.
    """
    present = set(tensors)
    what = f"{where}: {short.repr(name)}"
    if name not in present:
        raise FormatError(f"{what}: there is no such tensor.")
    found = {part: tensors[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in present}
    kinds = [kind for kind in KINDS if _STATE + kind in found]
    if len(kinds) != 1:
        raise FormatError(
            f"{what} must have one of {' and '.join(_STATE + k for k in KINDS)}, got {len(kinds)} of them."
        )
    state = read_state(found[_STATE + kinds[0]], kinds[0], what)
    size = math.prod(state.shape)
    blocks = -(-size // state.blocksize)
    packed = (
        np.asarray(tensors[name]).reshape(-1).view(np.uint8)
    )  # quant_storage may be another dtype over the same bytes
    _require(packed.size == (size + 1) // 2, what, f"{(size + 1) // 2} bytes of codes", packed.size)
    absmax = _part(found, "absmax", np.uint8 if state.nested else np.float32, blocks, what)
    _require_words(_part(found, "quant_map", np.float32, 16, what), codebook(kinds[0]), what, "quant_map")
    nested = None
    if state.nested:
        absmax2 = _part(found, "nested_absmax", np.float32, -(-blocks // NESTED), what)
        _require_words(
            _part(found, "nested_quant_map", np.float32, 256, what), nested_codebook(), what, "nested_quant_map"
        )
        nested = Nested(absmax2, np.float32(state.offset))
    return Quantised(kinds[0], packed, absmax, state.shape, state.blocksize, state.dtype, nested)


def _part(found: Mapping[str, np.ndarray], part: str, dtype: type, size: int, what: str) -> np.ndarray:
    if part not in found:
        raise FormatError(f"{what}: its {part} is missing.")
    array = found[part]
    _require(
        array.dtype == dtype and array.shape == (size,),
        what,
        f"{part} {np.dtype(dtype).name} of shape ({size},)",
        f"{array.dtype.name} of shape {array.shape}",
    )
    return array


def _require(holds: bool, what: str, expected: str, came: Any) -> None:
    if not holds:
        raise FormatError(f"{what} must have {expected}, got {came}.")


def _require_words(got: np.ndarray, words: np.ndarray, what: str, part: str) -> None:
    at = np.flatnonzero(got != words)
    if at.size:
        i = int(at[0])
        raise FormatError(f"{what} must have {part}[{i}] = {words[i]}, got {got[i]}: other codewords are not read.")
