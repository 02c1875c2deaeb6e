"""A method by its name and numbers, and where it stands in a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches

from refpeft.convert.quantise import Settings
from refpeft.errors import AttributeValueError
from refpeft.memory.decoder import Decoder
from refpeft.memory.trained import ALIASES
from refpeft.methods import Method, methods
from refpeft.models.language import pattern
from refpeft.models.places import standing
from refpeft.options import parsed


def named(name: str) -> type[Method]:
    """The method of a name; qlora is lora, see `base`.

    Raises
    ------
    AttributeValueError
        If there is none.
    """
    if (plain := ALIASES.get(name, name)) not in (known := methods()):
        near = get_close_matches(name.lower(), [*known, *ALIASES], n=1)
        hint = f"did you mean {near[0]}?" if near else "'refpeft methods' lists them."
        raise AttributeValueError(f"there is no method {name!r}: {hint}")
    return known[plain]


def base(name: str, quantise: Settings | None) -> Settings | None:
    """How the base of a method is quantised, where nothing else is asked for: qlora's in NF4, doubly."""
    return Settings(double=True) if name == "qlora" and quantise is None else quantise


def configured(name: str, options: Mapping[str, str] = {}, **numbers) -> Method:
    """The method with those of the numbers that it has, as rank or tokens, and with its options, which come as texts.

    Raises
    ------
    AttributeValueError
        If it has several of what the number is one of, and no option says which.
    """
    method = named(name)
    several = [field.name for field in fields(method) if field.name in numbers and str(field.type).startswith("tuple")]
    for field in (field for field in several if field not in options):
        raise AttributeValueError(f"{name} needs {field}, as --option {field}=5,17, but none came.")
    own = {field.name for field in fields(method)} - set(several)
    return method(**({n: value for n, value in numbers.items() if n in own} | parsed(name, method, options)))


def takes(name: str, option: str) -> bool:
    """Whether a method of that name has a number, as rank or tokens, or stands where ``targets`` say."""
    method = named(name)
    if option == "targets":
        return standing(method()).endswith(".linear")
    return option in {field.name for field in fields(method)}


def at(shape: Decoder, method: Method, targets: str) -> tuple[Method, str]:
    """The method as a model of this shape takes it, and the pattern of its sites.

    One for matrices stands at those that ``targets`` names, see `Decoder.select`, any other where it stands by its definition.
    """
    if hasattr(method, "size"):
        method = replace(method, size=shape.head_size)  # type: ignore[call-arg]
    return method, pattern(shape, targets) if standing(method).endswith(".linear") else getattr(method, "sites", "*")
