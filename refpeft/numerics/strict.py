"""Strict: an array on a device of its own, which nothing converts implicitly and nobody writes to.

A source that runs on it stays inside the set of primitives and will run on CuPy, or on any array type with the same
functions.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.duck import DuckArray
from refpeft.numerics.primitives import PRIMITIVES

_CONSTANTS_ALLOWED = ("take", "scatter_add")


class Strict(DuckArray):
    """A read-only array of any dtype on the device ``"strict:0"``.

    Parameters
    ----------
    value : array_like
        Copied.
    """

    device = "strict:0"

    def __init__(self, value):
        self._value = np.array(value)
        self._value.setflags(write=False)

    def parts(self):
        return (self._value,)

    def rebuild(self, value):
        return Strict(value)

    def lift(self, constant):
        raise TypeError("a NumPy array stands beside an array on another device: only Python numbers may.")

    @property
    def dtype(self):
        return self._value.dtype

    def to_numpy(self) -> np.ndarray:
        """A copy on the host: the one way back, and an explicit one."""
        return self._value.copy()

    @classmethod
    def apply_primitive(cls, name, args, kwargs):
        if name not in _CONSTANTS_ALLOWED and any(isinstance(a, np.ndarray) for a in _leaves(args)):
            raise TypeError(f"{name}: a NumPy array stands beside an array on {cls.device}; only Python numbers may.")
        return Strict(PRIMITIVES[name].plain(*_unwrapped(args), **kwargs))

    def __repr__(self):
        return f"Strict({self._value!r})"


for _name in PRIMITIVES:
    Strict.rule(_name)(PRIMITIVES[_name].plain)


def _leaves(args):
    for a in args:
        if isinstance(a, list | tuple):
            yield from _leaves(a)
        else:
            yield a


def _unwrapped(argument):
    if isinstance(argument, Strict):
        return argument.parts()[0]
    if isinstance(argument, list | tuple) and any(isinstance(a, Strict) for a in _leaves(argument)):
        return [_unwrapped(a) for a in argument]
    return argument
