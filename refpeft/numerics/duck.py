"""What all interpretations share: an array type that gives each primitive its own rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from refpeft.numerics.primitives import PRIMITIVES, getitem, name_of


class DuckArray(NDArrayOperatorsMixin):
    """An array that carries parts of equal shape and interprets each primitive by a rule.

    A subclass gives ``parts`` (the arrays it carries), ``rebuild`` (itself again from new parts), ``lift`` (a constant
    as one of its own) and a rule for every primitive that computes something. Structural primitives need none: they move the
    elements of each part alike. Anything outside the set raises TypeError, which keeps sources inside it.
    """

    rules: ClassVar[dict[str, Callable]]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.rules = {}

    @classmethod
    def rule(cls, *names: str):
        """Register the decorated function as this interpretation's rule for each of ``names``."""

        def register(function):
            for name in names:
                if name not in PRIMITIVES:
                    raise KeyError(f"{name!r} is not a primitive: primitives.py has {', '.join(PRIMITIVES)}.")
                cls.rules[name] = function
            return function

        return register

    def parts(self) -> tuple[Any, ...]:
        """The arrays this one carries, all of one shape."""
        raise NotImplementedError

    def rebuild(self, *parts) -> Self:
        """An array like this one with other parts."""
        raise NotImplementedError

    def lift(self, constant) -> Self:
        """A plain number or array as one of this type."""
        raise NotImplementedError

    @classmethod
    def apply_primitive(cls, name: str, args: tuple, kwargs: dict):
        """Interpret one call of a primitive."""
        first = next(a for a in _flat(args) if isinstance(a, cls))
        primitive = PRIMITIVES[name]
        args = tuple(a if isinstance(a, DuckArray) else first._lifted(a, primitive.kind) for a in args)
        if name in cls.rules:
            return cls.rules[name](*args, **kwargs)
        if primitive.kind == "structural":

            def move(part: Callable):
                return primitive.function(*[_each(a, part) for a in args], **kwargs)

            moved = first.rebuild(*(move(lambda a, i=i: a.parts()[i]) for i in range(len(first.parts()))))
            moved.remember([a for a in _interpreted(args) if isinstance(a, cls)], move)
            return moved
        if primitive.kind == "integer":
            return primitive.plain(*args, **kwargs)
        raise TypeError(f"{cls.__name__} has no rule for the primitive {name!r}.")

    def remember(self, sources: list, move: Callable) -> None:
        """Take over what is known of ``sources`` beside their parts, after a structural primitive moved them.

        ``move`` makes an array of this one's shape from a function that gives an array for each source.
        """

    def _lifted(self, argument, kind: str):
        """Floating constants beside an interpreted array become one of its kind; indices, masks and options stay."""
        if isinstance(argument, list | tuple) and any(isinstance(a, DuckArray) for a in argument):
            return [self._lifted(a, kind) for a in argument]
        number = isinstance(argument, float | np.floating) or (
            kind in ("elementwise", "choice")
            and isinstance(argument, int | np.integer)
            and not isinstance(argument, bool)
        )
        if number or (isinstance(argument, np.ndarray) and argument.dtype.kind == "f"):
            return self.lift(argument)
        return argument

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        name = name_of(ufunc)
        if name is None or method != "__call__" or kwargs:
            spelled = ufunc.__name__ + ("" if method == "__call__" else f".{method}")
            raise TypeError(
                f"numpy.{spelled} (with {sorted(kwargs) or 'no options'}) is outside refpeft's set of primitives."
            )
        return type(self).apply_primitive(name, inputs, {})

    def __array_function__(self, function, types, args, kwargs):
        name = name_of(function)
        if name is None:
            raise TypeError(f"numpy.{function.__name__} is outside refpeft's set of primitives.")
        if np.any(kwargs.get("constant_values", 0)):
            raise TypeError("numpy.pad with constant_values other than zero is outside refpeft's set of primitives.")
        return type(self).apply_primitive(name, args, kwargs)

    def __array__(self, *args, **kwargs):
        raise TypeError(f"a {type(self).__name__} array is never converted to NumPy implicitly.")

    def __bool__(self):
        raise TypeError("a source never branches on the truth value of an array.")

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, key):
        return getitem(self, key)

    def __len__(self):
        return self.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts()[0].shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def T(self) -> Self:
        return self.transpose()

    def reshape(self, *shape):
        return np.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes):
        return np.transpose(self, axes[0] if len(axes) == 1 else axes or None)

    def swapaxes(self, one, other):
        order = list(range(self.ndim))
        order[one], order[other] = order[other], order[one]
        return self.transpose(order)

    def sum(self, axis=None, keepdims=False):
        return np.sum(self, axis=axis, keepdims=keepdims)

    def max(self, axis=None, keepdims=False):
        return np.max(self, axis=axis, keepdims=keepdims)

    def min(self, axis=None, keepdims=False):
        return np.min(self, axis=axis, keepdims=keepdims)


def _flat(args):
    for a in args:
        if isinstance(a, list | tuple):
            yield from _flat(a)
        else:
            yield a


def _interpreted(arguments):
    """The arrays among arguments that were lifted: those that came in a sequence are in a list."""
    for a in arguments:
        if isinstance(a, DuckArray):
            yield a
        elif isinstance(a, list):
            yield from _interpreted(a)


def _each(argument, part: Callable):
    if isinstance(argument, DuckArray):
        return part(argument)
    if isinstance(argument, list) and any(True for _ in _interpreted(argument)):
        return [_each(a, part) for a in argument]
    return argument
