"""Who holds memory, and how much was held at most."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from typing import NamedTuple

import numpy as np


class Held(NamedTuple):
    """What an entry says: in the course of what memory was taken, and for which array."""

    purpose: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Ledger:
    """Bytes from when they are taken until they are given back.

    Attributes
    ----------
    purpose : str
        In the course of what memory is taken now.
    live, peak : int
        Bytes that are held now, and that were held at most.
    """

    def __init__(self):
        self.purpose, self.live, self.peak = "", 0, 0
        self._held: dict[int, Held] = {}
        self._highest: dict[int, Held] = {}
        self._rising, self._lock = False, threading.RLock()
        self._stock: defaultdict[int, list[Buffer]] = defaultdict(list)

    @property
    def at_peak(self) -> list[Held]:
        """What was held when it was most, in the order in which it was taken."""
        return list((self._held if self._rising else self._highest).values())

    def lend(self, shape: tuple[int, ...], dtype: np.dtype, most: int) -> Loan:
        """Memory out of the stock, where there is some of that size, which goes there afterwards."""
        held = Held(self.purpose, shape, dtype)
        with self._lock:
            if not self._stock[held.bytes]:
                return Loan(Buffer(self, shape, dtype), most)
            self._remember()
            buffer = self._stock[held.bytes].pop()
            self._held[id(buffer)] = held
            return Loan(buffer, most)

    def _put_by(self, buffer: Buffer, most: int) -> None:
        """Into the stock; one that is larger than ``most`` is not kept, and the others are let go where there would be more."""
        with self._lock:
            held = self._held[id(buffer)]
            if held.bytes > most:
                return
            if sum(size * len(buffers) for size, buffers in self._stock.items()) + held.bytes > most:
                self._stock.clear()
            self._remember()
            self._held[id(buffer)] = held._replace(purpose="kept for the next")
            self._stock[held.bytes].append(buffer)

    def _take(self, buffer: Buffer, held: Held) -> None:
        with self._lock:
            self._held[id(buffer)] = held
            self.live += held.bytes
            if self.live > self.peak:
                self.peak, self._rising = self.live, True

    def _give_back(self, buffer: Buffer) -> None:
        with self._lock:
            self._remember()
            self.live -= self._held.pop(id(buffer)).bytes

    def _remember(self) -> None:
        """What is held before it changes, if it is the most that ever was."""
        if self._rising:
            self._highest, self._rising = dict(self._held), False


class Buffer:
    """Memory that is in the ledger as long as something refers to it, which Python finds out."""

    def __init__(self, ledger: Ledger, shape: tuple[int, ...], dtype: np.dtype):
        self.ledger = ledger
        ledger._take(self, Held(ledger.purpose, shape, dtype))

    def __del__(self):
        self.ledger._give_back(self)


class Loan:
    """A buffer that goes to the ledger's stock when nothing refers to it any more."""

    def __init__(self, buffer: Buffer, most: int):
        self.ledger, self._buffer, self._most = buffer.ledger, buffer, most

    def __del__(self):
        self.ledger._put_by(self._buffer, self._most)
