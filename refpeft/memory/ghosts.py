"""Arrays that have shapes and no numbers: what is computed with them takes memory on paper only.

A `Ghost` is NumPy's array without its elements: shape, dtype and strides. What NumPy gives as a view is a view here, of the same
`Buffer`; what NumPy puts into new memory gets a new one, which a `Ledger` counts until nobody refers to it. So the count of a
program that runs on ghosts is that of the program on arrays, whatever it keeps, shares or lets go. No element of any array is
ever read.

Two things are not seen: that NumPy writes a result over an operand that nobody will ask for again (``a * b + c`` takes one array
there, two here), and what lies within the loops of NumPy and BLAS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.lib.stride_tricks import as_strided

from refpeft.errors import CapabilityError
from refpeft.memory.ledger import Buffer, Ledger, Loan

FUNCTIONS: dict[Callable, Callable] = {}
"""What NumPy's functions are on ghosts; any other is refused."""


class Ghost(NDArrayOperatorsMixin):
    """An array without its elements.

    Parameters
    ----------
    form : numpy.ndarray
        Of the same shape, dtype and strides, over the memory of one element.
    buffer : Buffer or Loan
    """

    def __init__(self, form: np.ndarray, buffer: Buffer | Loan):
        self.form, self.buffer = form, buffer
        self.shape, self.dtype, self.flags = form.shape, form.dtype, form.flags
        self.ndim, self.size = form.ndim, form.size

    @classmethod
    def of(cls, ledger: Ledger, shape: Sequence[int], dtype, strides: Sequence[int] | None = None) -> Ghost:
        """One in memory of its own, row-major where nothing else is said."""
        shape, dtype = tuple(shape), np.dtype(dtype)
        return cls(_form(shape, dtype, strides), Buffer(ledger, shape, dtype))

    def lent(self, shape: Sequence[int], dtype, most: int) -> Ghost:
        """Another one, whose memory is kept for the next of its size; what lies unused has ``most`` bytes at most."""
        shape, dtype = tuple(shape), np.dtype(dtype)
        return Ghost(_form(shape, dtype), self.buffer.ledger.lend(shape, dtype, most))

    def __len__(self):
        return self.shape[0]

    def __repr__(self):
        return f"Ghost({self.shape}, {self.dtype})"

    def __float__(self):
        return math.nan

    def __array__(self, *_, **__):
        raise CapabilityError(
            f"{self!r} has no elements, so that what computes with them in its own way cannot be rehearsed."
        )

    # Views of the same memory

    def _view(self, form: np.ndarray) -> Ghost:
        return Ghost(form, self.buffer)

    def __getitem__(self, key):
        key = key if isinstance(key, tuple) else (key,)
        if any(isinstance(part, np.ndarray) for part in key):
            return self._new(_outline(self.shape)[key].shape)
        return self._view(self.form[key if Ellipsis in key else (*key, ...)])

    def __setitem__(self, key, value):
        """Nothing is kept of what is written."""

    def __iter__(self) -> Iterator[Ghost]:
        return (self[i] for i in range(len(self)))

    @property
    def T(self):
        return self._view(self.form.T)

    def swapaxes(self, first, second):
        return self._view(self.form.swapaxes(first, second))

    def transpose(self, *axes):
        return self._view(self.form.transpose(*axes))

    def view(self, dtype):
        return self._view(self.form.view(dtype))

    def reshape(self, *shape):
        """A view where the strides allow one."""
        try:
            return self._view(self.form.reshape(*shape, copy=False))
        except ValueError:
            return self._new(_outline((self.size,)).reshape(*shape).shape)

    # New memory

    def _new(self, shape, dtype=None, strides=None) -> Ghost:
        return Ghost.of(self.buffer.ledger, shape, self.dtype if dtype is None else dtype, strides)

    def astype(self, dtype, order="K", copy=True):
        if not copy and np.dtype(dtype) == self.dtype and (order == "K" or self.flags.c_contiguous):
            return self
        return self._new(self.shape, dtype, _laid_out(self.shape, dtype, [self.form]) if order == "K" else None)

    def copy(self):
        return self.astype(self.dtype, order="C")

    def sum(self, axis=None, keepdims=False, where=True):
        return self._reduced(axis, keepdims, np.zeros(1, self.dtype).sum().dtype)

    def max(self, axis=None, keepdims=False, initial=None):
        return self._reduced(axis, keepdims, self.dtype)

    def _reduced(self, axis, keepdims, dtype) -> Ghost:
        axes = range(self.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        gone = {a % self.ndim for a in axes}
        return self._new([1 if i in gone else n for i, n in enumerate(self.shape) if keepdims or i not in gone], dtype)

    # What NumPy is asked for

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        if method != "__call__":
            return NotImplemented
        if out:
            return out[0]
        if ufunc is np.matmul:
            (*left, rows, _), (*right, _, columns) = (i.shape for i in inputs)
            return self._new((*np.broadcast_shapes(left, right), rows, columns), _common(inputs))
        shape = np.broadcast_shapes(*(getattr(i, "shape", ()) for i in inputs))
        kinds = [getattr(i, "dtype", type(i)) for i in inputs]
        dtype = ufunc.resolve_dtypes((*kinds, *[None] * ufunc.nout))[ufunc.nin]
        return self._new(shape, dtype, _laid_out(shape, dtype, [i.form for i in inputs if isinstance(i, Ghost)]))

    def __array_function__(self, function, types, arguments, options):
        if function not in FUNCTIONS:
            raise CapabilityError(f"what {function.__name__} makes of arrays without elements is not written down.")
        return FUNCTIONS[function](*arguments, **options)


def _form(shape, dtype, strides=None) -> np.ndarray:
    """An array of one element that passes for many."""
    strides = _strides(shape, dtype, range(len(shape))) if strides is None else strides
    return as_strided(np.empty(1, dtype), shape, strides)


def _outline(shape) -> np.ndarray:
    """An array of that shape that takes a byte."""
    return np.broadcast_to(np.False_, shape)


def _strides(shape, dtype, order) -> tuple[int, ...]:
    """Those of a new array whose axes lie in this order, the last one side by side."""
    found, step = [0] * len(shape), np.dtype(dtype).itemsize
    for axis in reversed(list(order)):
        found[axis], step = step, step * max(shape[axis], 1)
    return tuple(found)


def _laid_out(shape, dtype, forms) -> tuple[int, ...]:
    """Those of a result: its axes lie as those of the first operand of its shape."""
    like = next((form.strides for form in forms if form.shape == shape), None)
    return _strides(shape, dtype, sorted(range(len(shape)), key=lambda axis: -like[axis] if like else axis))


def _common(arrays) -> np.dtype:
    """The dtype that they have in common, where a number takes that of the arrays."""
    return np.result_type(*(getattr(a, "dtype", a) for a in arrays))


def _like(*arrays) -> Ghost:
    """The first ghost among them."""
    return next(a for a in arrays if isinstance(a, Ghost))


def _stands_for(*functions):
    """Make the decorated function what these of NumPy's are on ghosts."""

    def register(own):
        FUNCTIONS.update(dict.fromkeys(functions, own))
        return own

    return register


@_stands_for(np.empty_like, np.zeros_like, np.ones_like)
def _empty_like(array, dtype=None, *, order="K", shape=None):
    dtype = array.dtype if dtype is None else dtype
    if shape is None and order == "K":
        return array._new(array.shape, dtype, _laid_out(array.shape, dtype, [array.form]))
    shape = array.shape if shape is None else shape
    return array._new(shape if isinstance(shape, tuple) else (shape,), dtype)


@_stands_for(np.full_like)
def _full_like(array, value, *, shape=None):
    return _empty_like(array, shape=shape)


@_stands_for(np.copyto)
def _copyto(into, array, **options):
    return None


@_stands_for(np.take)
def _take(array, indices, *, out, mode):
    return out


@_stands_for(np.isneginf)
def _isneginf(array):
    return array._new(array.shape, bool)


@_stands_for(np.where)
def _where(condition, first, second):
    shape = np.broadcast_shapes(*(getattr(a, "shape", ()) for a in (condition, first, second)))
    return _like(condition, first, second)._new(shape, _common((first, second)))


@_stands_for(np.atleast_1d)
def _atleast_1d(array):
    return array if array.ndim else array.reshape(1)


@_stands_for(np.broadcast_to)
def _broadcast_to(array, shape):
    return array._view(np.broadcast_to(array.form, shape))


@_stands_for(np.concatenate)
def _concatenate(arrays, axis=0):
    shape = list(arrays[0].shape)
    shape[axis] = sum(a.shape[axis] for a in arrays)
    return _like(*arrays)._new(shape, _common(arrays))


@_stands_for(np.stack)
def _stack(arrays):
    return _like(*arrays)._new((len(arrays), *arrays[0].shape), _common(arrays))


@_stands_for(np.einsum)
def _einsum(subscripts, *operands):
    inputs, output = subscripts.split("->")
    sizes: dict[str, Any] = {}
    batch: tuple[int, ...] = ()
    for term, operand in zip(inputs.split(","), operands):
        letters = term.removeprefix("...")
        first = operand.ndim - len(letters)
        sizes |= zip(letters, operand.shape[first:])
        batch = np.broadcast_shapes(batch, operand.shape[:first])
    shape = (*(batch if "..." in output else ()), *(sizes[letter] for letter in output.removeprefix("...")))
    return _like(*operands)._new(shape, _common(operands))
