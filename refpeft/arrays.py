"""Arrays of any library as NumPy arrays, through DLPack or ``__array__``, without importing that library."""

from __future__ import annotations

import sys

import numpy as np

from refpeft.errors import DtypeError
from refpeft.numerics.formats import BFLOAT16


def to_numpy(array) -> np.ndarray:
    """``array`` on the host, gradients detached; bfloat16 as ``ml_dtypes.bfloat16``.

    Parameters
    ----------
    array : array_like
        NumPy, torch, CuPy, JAX or anything with ``__dlpack__`` or ``__array__``; a number or nested list.

    Raises
    ------
    DtypeError
        If it cannot be read as an array of numbers.
    """
    if isinstance(array, np.ndarray):
        return array
    roots = {kin.__module__.partition(".")[0] for kin in type(array).__mro__}
    try:
        if "torch" in roots:
            return _from_torch(array)
        if "cupy" in roots:
            return array.get()
        result = (
            np.asarray(array)
            if hasattr(array, "__array__") or not hasattr(array, "__dlpack__")
            else np.from_dlpack(array)
        )
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise DtypeError(f"a {type(array).__name__} cannot be read as an array: {error}") from error
    if result.dtype.kind in "OUSMm":
        raise DtypeError(f"a {type(array).__name__} holds {result.dtype} elements, where numbers are expected.")
    return result


def _from_torch(tensor) -> np.ndarray:
    torch = sys.modules["torch"]
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BFLOAT16.dtype)
    return tensor.numpy()
