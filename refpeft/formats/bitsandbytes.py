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
of the maxima, ``nested_offset``, is a sum in float32 whose order depends on how many threads torch has. Here it is summed in
float64 and rounded once, whichever backend does the rest; hand in the other one where bits must match.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from refpeft.errors import FormatError
from refpeft.formats.bitsandbytes_state import NESTED, State, read_state
from refpeft.formats.four_bit import KINDS, Nested, Quantised, codebook, dequantise, nested_codebook, quantise
from refpeft.formats.safetensors_header import short

__all__ = ["KINDS", "STATE", "Nested", "Quantised", "decode", "dequantise", "encode", "quantise", "stated", "weights"]

STATE = "quant_state.bitsandbytes__"
"""How the part of a weight that is its state begins; its kind follows."""

_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *(STATE + kind for kind in KINDS))


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
    tensors[f"{name}.{STATE}{weight.kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return tensors


def weights(names: Iterable[str]) -> list[str]:
    """The names of the 4-bit weights among a checkpoint's tensors, in their order."""
    known = list(names)
    stated = {name.rpartition(f".{STATE}")[0] for name in known if STATE in name}
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
    kind, state = stated(name, tensors, where)
    size = math.prod(state.shape)
    blocks = -(-size // state.blocksize)
    packed = (
        np.asarray(tensors[name]).reshape(-1).view(np.uint8)
    )  # quant_storage may be another dtype over the same bytes
    _require(packed.size == (size + 1) // 2, what, f"{(size + 1) // 2} bytes of codes", packed.size)
    absmax = _part(found, "absmax", np.uint8 if state.nested else np.float32, blocks, what)
    _require_words(_part(found, "quant_map", np.float32, 16, what), codebook(kind), what, "quant_map")
    nested = None
    if state.nested:
        absmax2 = _part(found, "nested_absmax", np.float32, -(-blocks // NESTED), what)
        _require_words(
            _part(found, "nested_quant_map", np.float32, 256, what), nested_codebook(), what, "nested_quant_map"
        )
        nested = Nested(absmax2, np.float32(state.offset))
    return Quantised(kind, packed, absmax, state.shape, state.blocksize, state.dtype, nested)


def stated(name: str, tensors: Mapping[str, np.ndarray] | Any, where: str = "the checkpoint") -> tuple[str, State]:
    """The kind of a weight and what its state says, from the tensors as for `decode`, of which the state is enough.

    Raises
    ------
    FormatError
        If there is not one state, or it is malformed.
    """
    present, what = set(tensors), f"{where}: {short.repr(name)}"
    kinds = [kind for kind in KINDS if f"{name}.{STATE}{kind}" in present]
    if len(kinds) != 1:
        raise FormatError(
            f"{what} must have one of {' and '.join(STATE + k for k in KINDS)}, got {len(kinds)} of them."
        )
    return kinds[0], read_state(tensors[f"{name}.{STATE}{kinds[0]}"], kinds[0], what)


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
