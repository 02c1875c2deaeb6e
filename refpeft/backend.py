"""Backends: what another implementation offers, so that the kit can certify it and an experiment can run on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refpeft.errors import CapabilityError
from refpeft.numerics.precision import Precision, standard_precision


@dataclass(frozen=True)
class Implementation:
    """One operation as a backend has it, after ``jax.custom_vjp``'s convention.

    Attributes
    ----------
    forward : callable
        ``forward(*inputs, residuals=True, **attributes) -> (outputs, residuals)``. Inputs are the backend's own
        arrays in the signature's order, None for absent ones; outputs a tuple. Residuals are the backend's own affair. Where it
        is known of which inputs gradients may be wanted, ``residuals`` has their names in place of True, so that what only others
        need is not kept.
    vjp : callable or None
        ``vjp(residuals, cotangents, wanted) -> gradients``: a tuple, one for each input name in ``wanted``, None for one that
        is ``frozen``. What is not wanted costs nothing. Residuals are consumed once. None for forward only.
    source : str
        ``"own"``; ``"shared"`` where it is the reference's source on the backend's arrays.
    outside : callable
        ``outside(shapes, attributes) -> reason``, given the shapes of the inputs that are there by name: why the implementation
        does not take such a call, empty where it does. Reasons are printed in the certificate, with how many problems they
        turned away.
    lacks : mapping of str to str
        Dtypes in which it does not take the operation, though the backend has them, each with the reason; their checks are then
        UNSUPPORTED for that reason.
    contiguous : str
        Why it refuses inputs that do not lie in row-major order, empty where it takes them. It has to raise an error then: an
        answer is held to be right.
    frozen : tuple of str
        Inputs to which it gives no gradient, out of `refpeft.methods.fixed_inputs`. They are printed in the certificate.
    missing : str
        Why there is none on this device after all; its checks are then UNSUPPORTED for that reason. Empty where there is one.
    """

    forward: Callable[..., tuple[tuple, Any]]
    vjp: Callable[[Any, Sequence, Sequence[str]], tuple] | None = None
    source: str = "own"
    outside: Callable[[Mapping[str, tuple[int, ...]], Mapping[str, Any]], str] = lambda shapes, attributes: ""
    lacks: Mapping[str, str] = field(default_factory=dict)
    contiguous: str = ""
    frozen: tuple[str, ...] = ()
    missing: str = ""


def withholding(vjp: Callable, frozen: Sequence[str]) -> Callable:
    """``vjp``, which is never asked for the gradient to a frozen input: None is given in its place."""

    def withheld(residuals, cotangents, wanted):
        asked = [name for name in wanted if name not in frozen]
        given = dict(zip(asked, vjp(residuals, cotangents, asked))) if asked else {}
        return tuple(given.get(name) for name in wanted)

    return withheld


class Backend(ABC):
    """A light description of an implementation of the catalogue. Creating one imports no array library.

    Attributes
    ----------
    name : str
        What ``refpeft certify`` calls it.
    summary : str
        One line for ``refpeft backends``.
    deterministic : bool
        Whether equal inputs give equal bits from run to run.
    training : bool
        Whether models are trained on it: its arrays are then added, sliced and reshaped as NumPy's or torch's are, and changed in
        place. The certificate has trajectories of those methods whose operations it has (``--operations 'train.*'``).
    shards : int
        Into how many parts a model may cut a batch, for `together`.
    """

    name: str
    summary: str = ""
    deterministic: bool = True
    training: bool = False
    shards: int = 1

    def unavailable(self) -> str | None:
        """Why the backend cannot run here, in one sentence; None if it can."""
        return None

    def devices(self) -> tuple[str, ...]:
        """Names of the devices it can run on here; the first is the default."""
        return ("cpu",)

    def on(self, device: str) -> Backend:
        """The backend as it is on a device: itself, unless it has other operations or needs other things there."""
        return self

    def versions(self) -> dict[str, str]:
        """Versions of what it computes with, for the certificate."""
        return {}

    def tally(self, operation: str) -> Mapping[str, int]:
        """What it has counted for an operation in this process, by name: its kernels' launches, say.

        By how much it grew during a check is told with the verdict.
        """
        return {}

    def precision(self, dtype: str) -> Precision | None:
        """What it promises about its arithmetic in ``dtype``; None where it does not have the dtype."""
        return standard_precision(dtype)

    @abstractmethod
    def operations(self) -> Mapping[str, Implementation]:
        """What it implements, by operation name."""

    @abstractmethod
    def asarray(self, array: np.ndarray, device: str) -> Any:
        """A host array (bfloat16 as ``ml_dtypes.bfloat16``) as the backend's own, on the device."""

    @abstractmethod
    def to_numpy(self, array: Any) -> np.ndarray:
        """The backend's array as a host array."""

    def together(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """What functions give that do not depend on each other, computed at the same time where that is faster."""
        return [task() for task in tasks]

    def device_of(self, array: Any) -> str:
        """The name of the device that holds the array."""
        return str(getattr(array, "device", "cpu"))

    def frames(self, count: int, size: int, device: str):
        """Memory of the device for ``count`` pages of ``size`` bytes, for paged optimizers: see `refpeft.training.pages.Frames`.

        Raises
        ------
        CapabilityError
            If the backend cannot page on the device.
        """
        if device != "cpu":
            raise CapabilityError(f"backend {self.name!r} has no paged optimizers on {device}.")
        from refpeft.training.pages import HostFrames

        return HostFrames(count, size)

    def implementation(self, operation: str) -> Implementation:
        """The implementation of one operation.

        Raises
        ------
        CapabilityError
            If the backend does not have it, or declares an input frozen that is trained, or that it has not.
        """
        known = self.operations()
        if operation not in known:
            raise CapabilityError(
                f"backend {self.name!r} does not implement {operation}; it has {', '.join(sorted(known))}."
            )
        if known[operation].frozen:
            self._require_fixed(operation, known[operation].frozen)
        return known[operation]

    def _require_fixed(self, operation: str, frozen: tuple[str, ...]) -> None:
        from refpeft.methods import fixed_inputs

        fixed = fixed_inputs(operation)
        if not isinstance(frozen, tuple) or not set(frozen) <= set(fixed):
            raise CapabilityError(
                f"backend {self.name!r} declares {operation} frozen in {frozen!r}: expected a tuple out of {fixed}, "
                "the inputs that no method trains."
            )
