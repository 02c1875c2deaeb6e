"""A model with its matrices in 4 bits, as bitsandbytes has them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from refpeft.backend import Backend
from refpeft.convert.folder import DTYPES, copy, rounded, stored
from refpeft.convert.settings import with_quantisation
from refpeft.convert.source import Source, Tensor
from refpeft.errors import DomainError
from refpeft.formats import bitsandbytes, four_bit, safetensors


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How tensors are quantised.

    Attributes
    ----------
    kind : str
        nf4 or fp4.
    blocksize : int
    double : bool
        Whether the maxima are quantised as well.
    dtype : str or None
        What every tensor is rounded to first; None leaves each in its own.
    """

    kind: str = "nf4"
    blocksize: int = 64
    double: bool = False
    dtype: str | None = None

    def __post_init__(self):
        four_bit.check(self.kind, self.blocksize, self.dtype or "float32")


@dataclass(frozen=True)
class Quantise:
    """The work, see `refpeft.convert.folder.Rewriting`.

    Attributes
    ----------
    chosen : frozenset of str
        The tensors that are quantised.
    settings : Settings
    backend : Backend, optional
        Who runs the operations; one without them is refused with a CapabilityError.
    """

    chosen: frozenset[str]
    settings: Settings
    backend: Backend | None = None

    def plan(self):
        backend = "reference" if self.backend is None else self.backend.name
        return {"backend": backend, "chosen": sorted(self.chosen), **asdict(self.settings)}

    def size(self, name: str, tensor: Tensor) -> int:
        own = 8 * stored(tensor, self.settings.dtype).itemsize
        return int(tensor.elements * (4 + 32 / self.settings.blocksize if name in self.chosen else own) / 8)

    def write(self, path: Path, name: str, tensor: Tensor) -> None:
        dtype, settings = stored(tensor, self.settings.dtype), self.settings
        if name not in self.chosen:
            copy(path, name, tensor, dtype)
            return
        try:
            weight = four_bit.quantise(
                rounded(tensor, dtype),
                tensor.shape,
                kind=settings.kind,
                blocksize=settings.blocksize,
                double=settings.double,
                dtype=dtype.name if dtype.name in DTYPES else "float32",
                backend=self.backend,
            )
        except DomainError:
            raise DomainError(f"Tensor {name} has an element that is not finite, so it cannot be quantised.") from None
        safetensors.save(path, bitsandbytes.encode(name, weight))

    def config(self, source: Source):
        settings, names = self.settings, source.tensors
        kept = [n for n in names if len(names[n].shape) == 2 and n.endswith(".weight") and n not in self.chosen]
        return with_quantisation(source.config or {}, settings.kind, settings.double, settings.dtype, kept)
