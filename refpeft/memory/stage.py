"""What training is rehearsed on: a backend and a model that are what they are, with ghosts for arrays."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from refpeft.backend import Backend, Implementation
from refpeft.memory.decoder import Decoder
from refpeft.memory.ghosts import Ghost
from refpeft.memory.ledger import Buffer, Ledger
from refpeft.models.language import LanguageModel


class Stage(Backend):
    """A backend as it is, whose operations say in the ledger which of them memory is taken for.

    It takes a batch whole: cut into shards it would take as much, but for gradients of its own in each.

    Parameters
    ----------
    inner : Backend
    ledger : Ledger
    """

    def __init__(self, inner: Backend, ledger: Ledger):
        self.name, self._inner, self._ledger = inner.name, inner, ledger

    @functools.cached_property
    def _implementations(self) -> Mapping[str, Implementation]:
        return {name: self._telling(name, its) for name, its in self._inner.operations().items()}

    def operations(self):
        return self._implementations

    def asarray(self, array, device):
        if isinstance(array, Ghost) or array.dtype.kind in "iub":
            return array
        return Ghost.of(self._ledger, array.shape, np.float32)

    def to_numpy(self, array):
        return array

    def frames(self, count, size, device):
        return PaperFrames(self._ledger, count, size)

    def _telling(self, name: str, its: Implementation) -> Implementation:
        def told(purpose, function):
            def call(*arguments, **options):
                before, self._ledger.purpose = self._ledger.purpose, purpose
                try:
                    return function(*arguments, **options)
                finally:
                    self._ledger.purpose = before

            return call

        vjp = its.vjp and told(f"{name}, backwards", its.vjp)
        return replace(its, forward=told(name, its.forward), vjp=vjp)


class PaperFrames:
    """Pages of an optimizer's state, of which nothing is moved; what is behind them lies in the run's file."""

    def __init__(self, ledger: Ledger, count: int, size: int):
        self._memory = Ghost.of(ledger, (count, size), np.uint8)

    def host(self, count):
        return np.broadcast_to(np.uint8(0), (count, self._memory.shape[1]))

    def fetch(self, frame, page):
        pass

    spill = fetch

    def ready(self, frame):
        pass

    def settle(self):
        pass

    def view(self, frame, start, stop, dtype):
        return self._memory[frame, start:stop].view(dtype)


class Rehearsed(LanguageModel):
    """A model whose arrays are ghosts; integers, token ids that is, are real."""

    def __init__(self, shape: Decoder, weights: Mapping, ledger: Ledger, backend: Backend):
        self._ledger = ledger
        super().__init__(shape, weights, eps=1e-5, backend=backend)

    def asarray(self, array):
        return self._put(array)

    def _put(self, array):
        return self.backend.asarray(array, self.device)

    def host(self, array):
        return array

    def weight(self, site):
        """Zeros in place of numbers, since what a method starts from changes no shape; but a copy is a copy."""
        place = self.places[site]
        zeros = np.broadcast_to(np.zeros(()), place.weight.shape).view(_Copied)
        if place.kind not in ("prompt", "table"):
            zeros.buffer = Buffer(self._ledger, place.weight.shape, zeros.dtype)
        return zeros


class _Copied(np.ndarray):
    """An array that holds a buffer in the ledger."""

    buffer: Buffer
