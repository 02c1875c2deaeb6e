"""A model with an adapter merged into its matrices, and the adapter's head in the place of its own: nothing is left to compute
beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from refpeft.convert.folder import copy, require_dtype, stored
from refpeft.convert.settings import with_dtype
from refpeft.convert.source import Source, Tensor
from refpeft.errors import CapabilityError, DomainError, FormatError
from refpeft.formats import peft, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.formats.adapters import require_finite
from refpeft.formats.names import FAMILIES, HEAD, listed, numbered
from refpeft.numerics.formats import FORMATS

_PRETRAINING = "cls."
"""Before the tensors of the heads that BERT was pretrained with."""


@dataclass(frozen=True)
class Merge:
    """The work, see `refpeft.convert.folder.Rewriting`.

    Each merge is the reference's, correctly rounded where the method has such a rule, in the wider of the two dtypes that weight
    and adapter have; it is rounded to the weight's then.

    Attributes
    ----------
    adapter : refpeft.formats.adapter.Adapter
    dtype : str or None
        What every tensor is rounded to first; None leaves each in its own.
    """

    adapter: Adapter
    dtype: str | None = None

    def __post_init__(self):
        require_dtype(self.dtype)

    @cached_property
    def adapted(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """The adapter's arrays, by the name of the tensor that they are merged into."""
        family = self.adapter.family
        return {peft.tensor_of(site, family): arrays for site, arrays in self.adapter.arrays.items()}

    @cached_property
    def head(self) -> Mapping[str, np.ndarray]:
        """What of a classifier's head the adapter brings, by the name of the tensor."""
        return {f"{HEAD[part]}.{end}": array for part, its in self.adapter.head.items() for end, array in its.items()}

    def completed(self, source: Source) -> Source:
        """The model with the parts of a head that the adapter brings and it has not, without that of its pretraining.

        Raises
        ------
        FormatError
            If it has no encoder, or a part of the head is neither its nor the adapter's.
        """
        if not self.head:
            return source
        table = f"{FAMILIES[peft.CLASSIFIER].top['embedding']}.weight"
        if table not in source.tensors:
            raise FormatError("The adapter has a classifier's head, but the model is no encoder of BERT's kind.")
        if missing := [p for p in HEAD if p not in self.adapter.head and f"{HEAD[p]}.weight" not in source.tensors]:
            raise FormatError(f"The adapter's head lacks the {missing[0]}, which the model does not have either.")
        dtype, kept = source.tensors[table].dtype, (n for n in source.tensors if not n.startswith(_PRETRAINING))
        new = {n: Tensor(a.shape, dtype, lambda a=a: iter([a])) for n, a in self.head.items()}  # type: ignore[misc]
        return replace(source, tensors=new | {name: source.tensors[name] for name in kept})

    def require_fitting(self, source: Source) -> None:
        """Refuse a model whose matrices are not those of the adapter.

        Raises
        ------
        FormatError
            If one is missing, or of another shape than the adapter's arrays allow, or one of these is not finite.
        CapabilityError
            If the method cannot be merged.
        """
        method = self.adapter.method
        if method.not_mergeable:
            raise CapabilityError(f"{type(method).__name__} cannot be merged: {method.not_mergeable}")
        require_finite(self.adapter)
        for name, arrays in self.adapted.items():
            if name not in source.tensors:
                raise FormatError(f"The adapter is for a tensor {name!r}, which the model does not have.")
            if (dtype := source.tensors[name].dtype).name not in FORMATS:
                raise FormatError(f"The model's {name} is of {dtype}, expected floating-point numbers to merge into.")
            self.adapter.method.merging(np.broadcast_to(np.float32(1), source.tensors[name].shape), arrays)
        for name, array in self.head.items():
            if source.tensors[name].shape != array.shape:
                shape = source.tensors[name].shape
                raise FormatError(f"The model's {name} has shape {shape}, but the adapter's has {array.shape}.")

    def plan(self):
        digest = hashlib.sha256()
        for name, arrays in sorted({**self.adapted, "head": self.head}.items()):
            for key, array in sorted(arrays.items()):
                digest.update(
                    f"{name} {key} {array.shape} {array.dtype} ".encode() + np.ascontiguousarray(array).tobytes()
                )
        method = self.adapter.method
        return {
            "merge": type(method).__name__,
            **asdict(method),  # type: ignore[call-overload]
            "arrays": digest.hexdigest(),
            "labels": self.adapter.labels,
            "dtype": self.dtype,
        }

    def size(self, name: str, tensor: Tensor) -> int:
        return tensor.elements * stored(tensor, self.dtype).itemsize

    def write(self, path: Path, name: str, tensor: Tensor) -> None:
        dtype, (layer, _, kind) = stored(tensor, self.dtype), name.rpartition(".")
        if name in self.head:
            safetensors.save(path, {name: _finite(name, self.head[name], dtype)})
            return
        arrays = self.adapted.get(f"{layer}.weight")
        if arrays is None or kind not in ("weight", "bias"):
            copy(path, name, tensor, dtype)
            return
        wide = np.result_type(np.float32, *(a.dtype for a in arrays.values()), dtype)
        merged = _finite(name, self.merged(name, tensor.whole(dtype).astype(wide)), dtype)
        safetensors.save(path, {name: merged.T if tensor.turned else merged})

    def merged(self, name: str, before: np.ndarray) -> np.ndarray:
        """An adapted layer's weight or bias with the adapter in it, in the dtype that it comes in."""
        layer, _, kind = name.rpartition(".")
        merge = self.adapter.method.merge if kind == "weight" else self.adapter.method.merge_bias
        with np.errstate(invalid="ignore"):  # a weight that is no number; who asks looks at what comes
            return merge(before, self.adapted[f"{layer}.weight"])

    def config(self, source: Source):
        config = with_dtype(source.config or {}, self.dtype)
        if "classifier" not in self.adapter.head:
            return config
        count, said = len(self.adapter.head["classifier"]["bias"]), listed(config.get("id2label")) or ()
        names = self.adapter.labels or (said if len(said) == count else numbered(count))
        both = {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
        return config | {"architectures": ["BertForSequenceClassification"]} | both


def _finite(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A tensor in a dtype that holds all of it.

    Raises
    ------
    DomainError
        If it does not.
    """
    with np.errstate(over="ignore"):
        rounded = array.astype(dtype)
    if not np.isfinite(rounded.astype(np.float32)).all():
        raise DomainError(f"Merged, tensor {name} has an element that is not finite in {dtype.name}.")
    return rounded
