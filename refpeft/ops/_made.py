"""Operations made of parts: entered in the catalogue as one that is written out is, with names, types and documentation."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping

from refpeft.operation import Operation, operation
from refpeft.signature import Signature

_POSITIONAL, _KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
_EMPTY = {False: inspect.Parameter.empty, True: None}


def made(
    name: str,
    text: str,
    said: str,
    part: Callable,
    forward: Callable,
    backward: Callable,
    attributes: Mapping = {},
    **keywords,
) -> Operation:
    """Declare operation ``name``, whose source and vjp are ``forward`` and ``backward``.

    Parameters
    ----------
    name, text
        Its name and signature.
    said : str
        Its documentation.
    part : callable
        The part that a family's file writes: the operation has its attributes, and belongs to its module.
    forward, backward : callable
        They take inputs, or cotangents and inputs, by position, and attributes by name.
    attributes : mapping of str to default
        Those beside the part's.
    **keywords
        As for `operation`.
    """
    source = _Source(text, forward, part, attributes)
    source.__doc__, source.__name__, source.__module__ = said, name.rpartition(".")[2], part.__module__
    declared = operation(name, text, **keywords)(source)

    def vjp(cotangent, *inputs, **attributes):
        return backward(cotangent, *source.complete(inputs), **attributes)

    declared.vjp(vjp)
    return declared


class _Source:
    """``forward`` with the parameters of a written function; they are worked out when asked for, not at import."""

    __name__: str

    def __init__(self, text: str, forward: Callable, part: Callable, attributes: Mapping):
        self._text, self._forward, self._part, self._beside = text, forward, part, attributes

    def __call__(self, *inputs, **attributes):
        return self._forward(*self.complete(inputs), **attributes)

    def complete(self, inputs: tuple) -> tuple:
        """The inputs with None for the optional ones at the end that a call leaves out."""
        return inputs + (None,) * (len(self._inputs) - len(inputs))

    @functools.cached_property
    def _inputs(self) -> list[inspect.Parameter]:
        inputs = Signature.parse(self._text).inputs
        return [inspect.Parameter(a.name, _POSITIONAL, default=_EMPTY[a.optional]) for a in inputs]

    @property
    def __signature__(self) -> inspect.Signature:
        own = [p for p in inspect.signature(self._part).parameters.values() if p.kind is _KEYWORD]
        beside = [inspect.Parameter(n, _KEYWORD, default=d) for n, d in self._beside.items()]
        return inspect.Signature(self._inputs + own + beside)

    @property
    def __annotations__(self) -> dict:  # type: ignore[override]
        types = {n: tuple[int, int] if isinstance(d, tuple) else type(d) for n, d in self._beside.items()}
        return typing.get_type_hints(inspect.unwrap(self._part)) | types
