"""The array type: values as the implementation has them, and what is still open about them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from refpeft.numerics.duck import DuckArray
from refpeft.numerics.formats import FLOAT64, Format, store
from refpeft.numerics.precision import standard_precision
from refpeft.numerics.primitives import PRIMITIVES
from refpeft_conformance.honest.summation import total

STYLES = ("stored", "fused", "late")
MOST_TERMS = 1 << 21
"""Sums of more are left to NumPy, and later additions do not join them."""

_LINEAR = {"matmul", "sum", "scatter_add", "fold", "negative", "real_ifft2"}


@dataclass(frozen=True)
class Arithmetic:
    """How an honest implementation computes.

    Attributes
    ----------
    storage : Format
    order : str
        One of `summation.ORDERS`.
    style : str
        One of `STYLES`.
    """

    storage: Format
    order: str
    style: str

    @cached_property
    def wide(self) -> np.dtype:
        """What it computes in."""
        return standard_precision(self.storage).accumulation.dtype

    def rounded(self, values) -> np.ndarray:
        """One rounding to the format of the computation."""
        return np.asarray(values).astype(self.wide, copy=False)

    def stored(self, values) -> np.ndarray:
        """An intermediate as the next step finds it."""
        if self.style != "stored" or self.storage.dtype == self.wide:
            return values
        return store(values, self.storage).astype(self.wide)

    def product(self, a, b) -> np.ndarray:
        """a * b: exactly, where an FMA adds it, else rounded."""
        if self.style == "stored" or self.storage == FLOAT64:
            return a * b
        return np.multiply(a, b, dtype=np.float64)

    def accumulate(self, terms) -> np.ndarray:
        """A sum over axis 0 in one accumulator."""
        return self.rounded(total(terms, self.order, lambda a, b: self.rounded(a + b)))

    def chain(self, terms) -> np.ndarray:
        """A sum over axis 0 whose partial sums are stored."""
        return total(terms, self.order, lambda a, b: self.stored(self.rounded(a + b)))


class Honest(DuckArray):
    """An array of numbers as the implementation has them, or of integers or truth values.

    Parameters
    ----------
    value : ndarray or None
    arithmetic : Arithmetic
    raw : ndarray, optional
        The value before it was stored.
    terms : (count, *shape) ndarray, optional
        What the value is a sum of, so that a chain of additions can take them in another order.
    late : (Honest, Honest), optional
        In place of a value: a number and the array that it still has to multiply.
    """

    def __init__(self, value, arithmetic: Arithmetic, *, raw=None, terms=None, late=None):
        self.arithmetic, self.terms, self.late = arithmetic, terms, late
        self._value: Any = None if late else _rounded(value, arithmetic)
        self._raw = self._value if raw is None else raw

    @property
    def value(self) -> np.ndarray:
        """What the next step finds."""
        if self._value is None:
            number, base = self.late
            self._value = self._raw = self.arithmetic.rounded(number.value * base.value)
        return self._value

    @property
    def raw(self) -> np.ndarray:
        """The value before it was stored: what a rounding that belongs to the definition rounds."""
        return self.value if self._raw is None else self._raw

    @property
    def shape(self):
        return self.late[1].shape if self.late else self._value.shape

    @property
    def floating(self) -> bool:
        """Whether it holds numbers that are rounded."""
        return self.late is not None or self._value.dtype.kind == "f"

    @property
    def addends(self) -> np.ndarray:
        """The terms of a sum; the value alone where it is none."""
        return self.value[None] if self.terms is None else self.terms

    @property
    def factor(self) -> np.ndarray:
        """The value as an FMA adds it: a product unrounded."""
        return self.value if self.terms is None or len(self.terms) != 1 else self.terms[0]

    def parts(self):
        return (self.value,)

    def rebuild(self, value):
        return Honest(value, self.arithmetic)

    def lift(self, constant):
        return self.rebuild(np.asarray(constant, np.float64 if self.floating else None))

    def computed(self, raw, terms=None) -> Honest:
        """A primitive's result: rounded, then stored."""
        raw = self.arithmetic.rounded(raw)
        kept = terms if terms is not None and 0 < terms.size <= MOST_TERMS else None
        return Honest(self.arithmetic.stored(raw), self.arithmetic, raw=raw, terms=kept)

    def accumulated(self, terms) -> Honest:
        """A contraction, or a sum over an axis: over axis 0 of ``terms``, whose products may be unrounded."""
        shared = self.arithmetic.style != "stored"
        return self.computed(self.arithmetic.accumulate(terms), terms if shared else None)

    def summed(self, terms) -> Honest:
        """A chain of additions."""
        if self.arithmetic.style == "stored" and len(terms) > 2:
            return self.computed(self.arithmetic.chain(terms), terms)
        return self.computed(self.arithmetic.accumulate(terms), terms)

    def remember(self, sources, move):
        """A sum remains one wherever its elements are moved."""
        if self.floating and any(a.terms is not None for a in sources):
            self.terms = _moved(sources, move)

    @classmethod
    def apply_primitive(cls, name, args, kwargs):
        """Interpret one call; a number that has still to be multiplied passes through what is linear."""
        if name in _LINEAR or PRIMITIVES[name].kind == "structural":
            for position, argument in enumerate(args):
                if isinstance(argument, Honest) and argument.late:
                    number, base = argument.late
                    result = cls.apply_primitive(name, (*args[:position], base, *args[position + 1 :]), kwargs)
                    return Honest(None, base.arithmetic, late=(number, result))
        return super().apply_primitive(name, args, kwargs)

    def __repr__(self):
        return f"Honest({self.value!r})"


def _rounded(value, arithmetic: Arithmetic) -> np.ndarray:
    value = np.asarray(value)
    return value if value.dtype.kind in "iub" else arithmetic.rounded(value)


def _moved(sources: list[Honest], move) -> np.ndarray:
    """The terms of what ``move`` makes of ``sources``: it moves positions in a table that begins with a zero."""
    count, positions, start = max(len(a.addends) for a in sources if a.floating), {}, 1
    dtype = np.result_type(*(a.addends for a in sources if a.floating))
    table = [np.zeros((count, 1), dtype)]
    for a in sources:
        if a.floating:
            terms = a.addends.reshape(len(a.addends), a.size)
            table.append(np.concatenate([terms, np.zeros((count - len(terms), a.size), dtype)]))
            positions[id(a)] = start + np.arange(a.size).reshape(a.shape)
            start += a.size
    return np.concatenate(table, axis=1)[:, move(lambda a: positions.get(id(a), a.value))]
