"""A model's frozen matrices in 4 bits, as QLoRA keeps them (Dettmers et al. 2023, arXiv:2305.14314, section 3).

    W = dequantize(codes, maxima)    and, doubly quantised (equation 6),    maxima = double_dequantize(codes, maxima of maxima)

A layer has such a `Base` in place of its weight. ``nn.linear`` and ``lora.linear`` are computed as ``qlora.linear``, which takes
the codes (with rank 0 where there is no update); every other operation gets W, decoded for the call and kept until its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from refpeft.errors import CapabilityError
from refpeft.formats.four_bit import Nested, Quantised, quantise
from refpeft.models.calls import Calls

_FUSED = ("nn.linear", "lora.linear")
_ABOVE = {"a", "b", "bias"}


class Base:
    """A frozen matrix in 4 bits, on a backend.

    Parameters
    ----------
    weight : refpeft.formats.four_bit.Quantised
    run : Calls
    put : callable
        From a host array to the backend's, in the dtype that it has.
    dtype : numpy.dtype
        In which the model computes.

    Attributes
    ----------
    weight : refpeft.formats.four_bit.Quantised
        Its arrays are the backend's, so that on a device of its own none is held by the host too.
    shape : tuple of int

    Raises
    ------
    CapabilityError
        If the backend lacks an operation that decodes it.
    """

    def __init__(self, weight: Quantised, run: Calls, put: Callable, dtype: np.dtype):
        self.shape, self._run, self._put, self._dtype = weight.shape, run, put, dtype
        exact = (weight.dtype, dtype.name) in ((dtype.name, dtype.name), ("float32", "float64"))
        self._fused = _FUSED if weight.kind == "nf4" and exact else ()
        needed = {
            f"{weight.kind}.dequantize": True,
            "nf4.double_dequantize": weight.nested,
            "qlora.linear": self._fused,
        }
        for operation in (name for name, used in needed.items() if used):
            run.backend.implementation(operation)
        nested = weight.nested and Nested(put(weight.nested.absmax), put(np.asarray(weight.nested.offset)))
        self.weight = replace(weight, packed=put(weight.packed), absmax=put(weight.absmax), nested=nested)

    def under(self, operation: str, arrays: Mapping[str, Any], attributes: Mapping[str, Any]):
        """What is called for a layer over this matrix: operation, arrays, attributes."""
        above = {name: a for name, a in arrays.items() if name != "weight"}
        if operation not in self._fused or not above.keys() <= _ABOVE:
            return operation, {**above, "weight": self.decoded()}, attributes
        o, i = self.shape
        update = {} if "a" in above else {"a": self._empty(0, i), "b": self._empty(o, 0)}
        stated = {"blocksize": self.weight.blocksize, "dtype": self._dtype.name}
        return (
            "qlora.linear",
            {**above, **update, "packed": self.weight.packed, "absmax": self._absmax()},
            {"scaling": attributes.get("scaling", 1.0), **stated},
        )

    def decoded(self):
        """W, as the backend's array in the model's dtype."""
        weight, inputs = self.weight, {"packed": self.weight.packed, "absmax": self._absmax()}
        stated = {"n": math.prod(self.shape), "blocksize": weight.blocksize, "dtype": weight.dtype}
        flat, _ = self._run.forward(f"{weight.kind}.dequantize", inputs, False, **stated)
        if weight.dtype != self._dtype.name:
            flat = self._put(np.asarray(self._run.backend.to_numpy(flat)).astype(self._dtype))
        return flat.reshape(self.shape)

    def again(self, weight: np.ndarray) -> Base:
        """Another matrix in its place, quantised as this one is: what PiSSA leaves of it, say.

        Raises
        ------
        CapabilityError
            If it is doubly quantised or decoded to 16 bits: saved decoded and quantised again, it would be another.
        """
        if self.weight.nested or self.weight.dtype != "float32":
            raise CapabilityError(
                "a method that brings a weight of its own needs a base that is decoded to float32 and not doubly quantised."
            )
        flat, kind, blocksize = np.asarray(weight, np.float32).reshape(-1), self.weight.kind, self.weight.blocksize
        quantised = quantise([flat], self.shape, kind=kind, blocksize=blocksize)
        return Base(quantised, self._run, self._put, self._dtype)

    def _absmax(self):
        """The block maxima, float32."""
        absmax, nested = self.weight.absmax, self.weight.nested
        if nested is None:
            return absmax
        inputs = {"codes": absmax, "absmax2": nested.absmax, "offset": nested.offset}
        return self._run.forward("nf4.double_dequantize", inputs, False)[0]

    def _empty(self, *shape: int):
        return self._put(np.empty(shape, self._dtype))
