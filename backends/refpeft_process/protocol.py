"""The protocol ``refpeft/1``: what a request says, and what an answer must say. ``docs/protocol.md`` defines it.

Every message is a safetensors file whose metadata are plain strings, so that a program needs no JSON library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refpeft.errors import AttributeValueError, CapabilityError, FormatError, RefpeftError
from refpeft.formats.safetensors import Archive
from refpeft.numerics.formats import FORMATS, TF32, as_format
from refpeft.numerics.precision import Precision, standard_precision
from refpeft.operation import find
from refpeft_process.program import one_line

PROTOCOL = "refpeft/1"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


@dataclass(frozen=True)
class Description:
    """What a program says of itself.

    Attributes
    ----------
    name, version : str
    operations : dict of str to bool
        Whether each has a gradient.
    precisions : dict of str to Precision
        By dtype.
    deterministic, training : bool
    frozen : dict of str to tuple of str
        Inputs without a gradient, by operation.
    unknown : tuple of str
        A sentence for each operation or dtype that this refpeft does not know; a program may be newer.
    """

    name: str
    version: str
    operations: dict[str, bool]
    precisions: dict[str, Precision]
    deterministic: bool
    training: bool
    frozen: dict[str, tuple[str, ...]]
    unknown: tuple[str, ...] = ()


def request_metadata(
    request: str,
    operation: str = "",
    dtype: str | None = None,
    attributes: Mapping[str, Any] = {},
    wanted: Sequence[str] = (),
) -> dict[str, str]:
    """The strings of a request; whatever does not apply is left out."""
    metadata = {
        "protocol": PROTOCOL,
        "request": request,
        "operation": operation,
        "dtype": dtype,
        "wanted": ",".join(wanted),
    }
    said = {key: value for key, value in metadata.items() if value}
    return said | {f"attribute.{name}": text(value) for name, value in attributes.items()}


def text(value) -> str:
    """An attribute as a request says it: shortest round-trip decimal, ``true`` or ``false``, ``2,1`` for a pair.

    Raises
    ------
    AttributeValueError
        If it is a string that JSON would have to escape: programs need not understand escapes.
    """
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return ",".join(map(text, value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return repr(float(value))
    if not (value.isascii() and value.isprintable()) or '"' in value or "\\" in value:
        raise AttributeValueError(
            f"the string {value!r} cannot be sent to a program: expected printable ASCII "
            "without quotes and backslashes."
        )
    return value


def results(answer: Archive, what: str, kind: str, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """The tensors ``KIND.NAME`` of a successful answer, in order.

    Raises
    ------
    CapabilityError
        If the program reports that it failed, or does not support the request.
    FormatError
        If the answer has other tensors than these, or says nothing known.
    """
    require_success(answer, what)
    expected = [f"{kind}.{name}" for name in names]
    if set(answer.tensors) != set(expected):
        raise FormatError(f"the answer to {what} must hold {_listed(expected)}, got {_listed(list(answer.tensors))}.")
    return tuple(answer.tensors[name] for name in expected)


def require_success(answer: Archive, what: str) -> None:
    """Raise unless an answer is in this protocol and its status is ``ok``."""
    said = answer.metadata
    if said.get("protocol") != PROTOCOL:
        raise FormatError(
            f"the answer to {what} must have the metadata protocol {PROTOCOL!r}, got {_shown(said, 'protocol')}."
        )
    message = one_line(said.get("message", "")).rstrip(".")
    message = f": {message}" if message else ""
    status = said.get("status")
    if status == "unsupported":
        raise CapabilityError(f"the program does not support {what}{message}.")
    if status == "error":
        raise CapabilityError(f"the program reports an error in {what}{message}.")
    if status != "ok":
        raise FormatError(
            f"the answer to {what} must have a status of ok, error or unsupported, got {_shown(said, 'status')}."
        )


def description(answer: Archive) -> Description:
    """Read an answer to ``describe``.

    Raises
    ------
    CapabilityError, FormatError
        As `results`, or if a key is missing or has a value outside its domain.
    """
    results(answer, "describe", "", ())
    said = answer.metadata
    for key in ("name", "version", "operations", "dtypes"):
        if not said.get(key, "").strip():
            raise FormatError(f"the answer to describe must have the metadata {key}.")
    name = said["name"]
    if not _NAME.fullmatch(name):
        raise FormatError(
            f"the answer to describe has name {name[:100]!r}: expected up to 64 letters, digits and . _ + -."
        )
    if len(said["version"]) > 100 or not said["version"].isprintable():
        raise FormatError("the answer to describe must have a version of at most 100 printable characters.")
    operations, new_operations = _known(map(_operation, _items(said["operations"])), lambda name: find(name).name)
    dtypes, new_dtypes = _known(((item, True) for item in _items(said["dtypes"])), lambda name: as_format(name).name)
    return Description(
        name,
        said["version"],
        operations,
        {dtype: _precision(dtype, said) for dtype in dtypes},
        _value("deterministic", said.get("deterministic", "true"), _boolean, "true or false"),
        _value("training", said.get("training", "false"), _boolean, "true or false"),
        {name: tuple(_items(said.get(f"frozen.{name}", ""))) for name in operations},
        (*new_operations, *new_dtypes),
    )


def _known(items: Iterable[tuple[str, bool]], look_up: Callable[[str], str]) -> tuple[dict[str, bool], list[str]]:
    """What a program lists, by its name here, and a sentence for each name that is unknown here."""
    known, unknown = {}, []
    for name, extent in items:
        if not _NAME.fullmatch(name):
            raise FormatError(
                f"the answer to describe lists {name[:100]!r}: expected names of up to 64 letters, digits and . _ + -."
            )
        try:
            known[look_up(name)] = extent
        except RefpeftError as error:
            unknown.append(str(error))
    return known, unknown


def _items(listed: str) -> list[str]:
    return [item.strip() for item in listed.split(",") if item.strip()]


def _operation(item: str) -> tuple[str, bool]:
    name, _, extent = item.partition(":")
    if extent not in ("", "forward"):
        raise FormatError(f"an operation may be marked :forward, but {item[:100]!r} came.")
    return name, not extent


def _precision(dtype: str, said: Mapping[str, str]) -> Precision:
    """`standard_precision`, with the promises ``precision.DTYPE.FIELD`` in its place."""
    prefix = f"precision.{dtype}."
    changes = {}
    for key, value in said.items():
        if key.startswith(prefix):
            field = key.removeprefix(prefix)
            if field not in _PROMISES:
                raise FormatError(
                    f"the answer to describe has {key[:100]}; a precision consists of {', '.join(_PROMISES)}."
                )
            changes[field] = _value(key, value, *_PROMISES[field])
    return standard_precision(dtype, **changes)


def _value(key: str, value: str, read: Callable[[str], Any], expected: str):
    try:
        return read(value)
    except (KeyError, ValueError):
        raise FormatError(f"the answer to describe has {key} {value[:100]!r}, expected {expected}.") from None


def _boolean(value: str) -> bool:
    return {"true": True, "false": False}[value]


def _positive(value: str) -> float:
    if not 0 < (number := float(value)) < math.inf:
        raise ValueError
    return number


def _count(value: str) -> int:
    if not 0 < (number := int(value)) < 1 << 20:
        raise ValueError
    return number


_PROMISES: dict[str, tuple[Callable[[str], Any], str]] = {
    "accumulation": (FORMATS.__getitem__, f"one of {', '.join(FORMATS)}"),
    "operands": ({"tf32": TF32, **FORMATS}.__getitem__, f"one of tf32, {', '.join(FORMATS)}"),
    "splits": (_count, "a positive integer"),
    "flush_to_zero": (_boolean, "true or false"),
    "elementary_ulps": (_positive, "a positive number"),
}


def _shown(said: Mapping[str, str], key: str) -> str:
    return repr(said[key][:100]) if key in said else "none"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:100] for name in names[:8]) + (", …" if len(names) > 8 else "")
    return f"the tensors {shown}" if names else "no tensors"
