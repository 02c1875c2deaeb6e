"""A model with an adapter merged into its matrices: nothing is left to compute beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from refpeft.convert.folder import copy, require_dtype, stored
from refpeft.convert.settings import with_dtype
from refpeft.convert.source import Source, Tensor
from refpeft.errors import CapabilityError, DomainError, FormatError
from refpeft.formats import peft, safetensors


@dataclass(frozen=True)
class Merge:
    """The work, see `refpeft.convert.folder.Rewriting`.

    Each merge is the reference's, correctly rounded where the method has such a rule, in the wider of the two dtypes that weight
    and adapter have; it is rounded to the weight's then.

    Attributes
    ----------
    adapter : refpeft.formats.peft.Adapter
    dtype : str or None
        What every tensor is rounded to first; None leaves each in its own.
    """

    adapter: peft.Adapter
    dtype: str | None = None

    def __post_init__(self):
        require_dtype(self.dtype)

    @cached_property
    def adapted(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """The adapter's arrays, by the name of the tensor that they are merged into."""
        family = self.adapter.family
        return {peft.tensor_of(site, family): arrays for site, arrays in self.adapter.arrays.items()}

    def require_fitting(self, source: Source) -> None:
        """Refuse a model whose matrices are not those of the adapter.

        Raises
        ------
        FormatError
            If one is missing, or of another shape than the adapter's arrays allow.
        CapabilityError
            If the method cannot be merged, or a classifier's head came with it.
        """
        method = self.adapter.method
        if method.not_mergeable:
            raise CapabilityError(f"{type(method).__name__} cannot be merged: {method.not_mergeable}")
        if self.adapter.head:
            raise CapabilityError("The adapter has a classifier's head, which a merge does not write.")
        for name, arrays in self.adapted.items():
            if name not in source.tensors:
                raise FormatError(f"The adapter is for a tensor {name!r}, which the model does not have.")
            self.adapter.method.merging(np.broadcast_to(np.float32(1), source.tensors[name].shape), arrays)

    def plan(self):
        digest = hashlib.sha256()
        for name, arrays in sorted(self.adapted.items()):
            for key, array in sorted(arrays.items()):
                digest.update(
                    f"{name} {key} {array.shape} {array.dtype} ".encode() + np.ascontiguousarray(array).tobytes()
                )
        method = self.adapter.method
        return {
            "merge": type(method).__name__,
            **asdict(method),  # type: ignore[call-overload]
            "arrays": digest.hexdigest(),
            "dtype": self.dtype,
        }

    def size(self, name: str, tensor: Tensor) -> int:
        return tensor.elements * stored(tensor, self.dtype).itemsize

    def write(self, path: Path, name: str, tensor: Tensor) -> None:
        dtype, (layer, _, kind) = stored(tensor, self.dtype), name.rpartition(".")
        arrays = self.adapted.get(f"{layer}.weight")
        if arrays is None or kind not in ("weight", "bias"):
            copy(path, name, tensor, dtype)
            return
        merge = self.adapter.method.merge if kind == "weight" else self.adapter.method.merge_bias
        wide = np.result_type(np.float32, *(a.dtype for a in arrays.values()), dtype)
        before = tensor.whole(dtype).astype(wide)
        with np.errstate(over="ignore"):
            merged = merge(before, arrays).astype(dtype)
        if not np.isfinite(merged.astype(np.float32)).all():
            raise DomainError(f"Merged, tensor {name} has an element that is not finite in {dtype.name}.")
        safetensors.save(path, {name: merged.T if tensor.turned else merged})

    def config(self, source: Source):
        return with_dtype(source.config or {}, self.dtype)
