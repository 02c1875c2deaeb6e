"""A backend around another: it has what that one has, but for the calls that a subclass changes or watches."""

from __future__ import annotations

import functools

from refpeft.backend import Backend, Implementation
from refpeft.operation import Operation, find


class Around(Backend):
    """The same backend, each implementation as `around` gives it.

    Parameters
    ----------
    inner : Backend
    """

    def __init__(self, inner: Backend):
        self.inner = inner
        self.name, self.deterministic, self.training = inner.name, inner.deterministic, inner.training

    def around(self, operation: Operation, inner: Implementation) -> Implementation:
        """What stands in an implementation's place."""
        raise NotImplementedError

    @functools.cached_property
    def _implementations(self) -> dict[str, Implementation]:
        return {name: self.around(find(name), inner) for name, inner in self.inner.operations().items()}

    def operations(self):
        return self._implementations

    def unavailable(self):
        return self.inner.unavailable()

    def devices(self):
        return self.inner.devices()

    def precision(self, dtype):
        return self.inner.precision(dtype)

    def tally(self, operation):
        return self.inner.tally(operation)

    def asarray(self, array, device):
        return self.inner.asarray(array, device)

    def to_numpy(self, array):
        return self.inner.to_numpy(array)

    def device_of(self, array):
        return self.inner.device_of(array)

    def frames(self, count, size, device):
        return self.inner.frames(count, size, device)
