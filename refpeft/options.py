"""Options of a method as texts, from a command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from refpeft.errors import AttributeValueError
from refpeft.methods import Method

_WANTED = {int: "an integer", float: "a number", bool: "true or false", tuple: "integers, as 1,2"}


def parsed(name: str, method: type[Method], texts: Mapping[str, str]) -> dict[str, Any]:
    """Each text as the type of its option's default; ``name`` is the method's in messages.

    Raises
    ------
    AttributeValueError
        If there is no such option, or the text is none of its values.
    """
    defaults = {field.name: field.default for field in fields(method)}
    if strange := [option for option in texts if option not in defaults]:
        raise AttributeValueError(f"{name} has no option {strange[0]!r}; its options are {listed(method)}.")
    return {option: _value(name, option, text, type(defaults[option])) for option, text in texts.items()}


def listed(method: type[Method]) -> str:
    """The names of its options."""
    return ", ".join(field.name for field in fields(method)) or "none"


def _value(name: str, option: str, text: str, kind: type) -> Any:
    try:
        if kind is tuple:
            return tuple(int(number) for number in text.split(","))
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (ValueError, KeyError):
        wanted = _WANTED.get(kind, "text")
        raise AttributeValueError(f"{name}: {option} must be {wanted}, but {text!r} came.") from None
