"""Attributes: what an operation takes beside arrays, read from the keyword-only parameters of its source."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from refpeft.errors import AttributeValueError


@dataclass(frozen=True)
class Attribute:
    """A keyword-only parameter of an operation: a number, a flag, a choice, or a pair or triple of integers.

    Attributes
    ----------
    name : str
    type : type
        float, int, bool, str or tuple.
    choices : tuple or None
        The closed set of admitted values, from a ``Literal`` annotation.
    default : object
        `inspect.Parameter.empty` if it must be given.
    length : int
        Of a tuple.
    """

    name: str
    type: type
    choices: tuple | None
    default: object
    length: int = 0

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def validate(self, operation: str, value):
        """``value`` as this attribute holds it.

        Raises
        ------
        AttributeValueError
            If it has another type, is not finite, or is outside the choices.
        """
        if self.choices is not None:
            for choice in self.choices:
                alike = _is_int(value) if _is_int(choice) else isinstance(value, type(choice))
                if alike and value == choice:
                    return choice
            raise AttributeValueError(
                f"{operation}: attribute {self.name} must be one of {list(self.choices)}, but {value!r} came."
            )
        if self.type is tuple:
            if not (isinstance(value, list | tuple) and len(value) == self.length and all(_is_int(v) for v in value)):
                wanted = {2: "a pair", 3: "a triple"}.get(self.length, f"a tuple of {self.length}")
                raise AttributeValueError(
                    f"{operation}: attribute {self.name} must be {wanted} of integers, but {value!r} came."
                )
            return tuple(int(v) for v in value)
        if self.type is bool:
            admitted, wanted = isinstance(value, bool | np.bool_), "true or false"
        elif self.type is int:
            admitted, wanted = _is_int(value), "an integer"
        elif self.type is float:
            admitted = (
                not isinstance(value, bool)
                and isinstance(value, int | float | np.integer | np.floating)
                and _is_finite(value)
            )
            wanted = "a finite number"
        else:
            admitted, wanted = isinstance(value, str), "a string"
        if not admitted:
            raise AttributeValueError(f"{operation}: attribute {self.name} must be {wanted}, but {value!r} came.")
        return self.type(value)

    def from_text(self, operation: str, text: str):
        """Read the value from a command line's ``name=value``."""
        kinds = {type(c) for c in self.choices} if self.choices else {self.type}
        value: object
        try:
            if tuple in kinds:
                value = tuple(int(part) for part in text.split(","))
            elif bool in kinds:
                value = {"true": True, "false": False}[text.lower()]
            else:
                value = next(iter(kinds))(text)
        except (ValueError, KeyError):
            value = text
        return self.validate(operation, value)


def _is_finite(number) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _is_int(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def attributes_of(source: Callable, parameters: Iterable[inspect.Parameter]) -> dict[str, Attribute]:
    """The attributes of a source by name, in the order of its parameters."""
    hints = typing.get_type_hints(source)
    found = {}
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY:
            hint = hints.get(parameter.name, float)
            choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
            kind = type(choices[0]) if choices else typing.get_origin(hint) or hint
            length = len(typing.get_args(hint)) if kind is tuple else 0
            found[parameter.name] = Attribute(parameter.name, kind, choices, parameter.default, length)
    return found
