"""Operations made of parts: entered in the catalogue as one that is written out is, with names, types and documentation."""

from __future__ import annotations

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
    signature = Signature.parse(text)
    inputs = [inspect.Parameter(a.name, _POSITIONAL, default=_EMPTY[a.optional]) for a in signature.inputs]
    own = [p for p in inspect.signature(part).parameters.values() if p.kind is _KEYWORD]
    beside = [inspect.Parameter(n, _KEYWORD, default=d) for n, d in attributes.items()]
    source = _complete(forward, len(inputs))
    source.__signature__ = inspect.Signature(inputs + own + beside)  # type: ignore[attr-defined]
    types = {n: tuple[int, int] if isinstance(d, tuple) else type(d) for n, d in attributes.items()}
    source.__annotations__ = typing.get_type_hints(part) | types
    source.__doc__, source.__name__, source.__module__ = said, name.rpartition(".")[2], part.__module__
    declared = operation(name, signature, **keywords)(source)
    declared.vjp(_complete(backward, len(inputs) + 1))
    return declared


def _complete(function: Callable, count: int) -> Callable:
    """``function`` with None for the optional inputs at the end that a call leaves out."""

    def run(*inputs, **attributes):
        return function(*inputs, *[None] * (count - len(inputs)), **attributes)

    return run
