"""Declaring a function as a library's implementation of an operation, with what the library does not take."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import replace

from refpeft.backend import Implementation
from refpeft_torch.autograd import implementation

Reason = Callable[[Mapping[str, tuple[int, ...]], Mapping], str]

_DECLARED: dict[str, dict[str, Implementation]] = {}


def implements(operation: str, *outside: Reason, gradients: bool = True, lacks: Mapping[str, str] | None = None):
    """Declare the decorated torch function as the library's implementation of ``operation``.

    Parameters
    ----------
    operation : str
    *outside : callable
        (shapes of the present inputs, attributes) -> why the library does not take such a call, empty where it does.
    gradients : bool
        False where the library computes without autograd, as its merges do.
    lacks : mapping of str to str
        Dtypes in which it does not have the operation, each with the reason.
    """

    def declare(function):
        found = implementation(function)
        package = function.__module__.rpartition(".")[0]
        _DECLARED.setdefault(package, {})[operation] = replace(
            found, vjp=found.vjp if gradients else None, outside=first(*outside), lacks=lacks or {}
        )
        return function

    return declare


def first(*reasons: Reason) -> Reason:
    """The first of several reasons."""
    return lambda shapes, attributes: next(filter(None, (reason(shapes, attributes) for reason in reasons)), "")


def implementations(package: str) -> dict[str, Implementation]:
    """Every implementation declared in a package; each of its modules is a family."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    return dict(sorted(_DECLARED[package].items()))


def without(name: str, reason: str) -> Reason:
    """The library has no such input."""
    return lambda shapes, attributes: reason if name in shapes else ""


def only(name: str, value, reason: str) -> Reason:
    """The library has one value of the attribute."""
    return lambda shapes, attributes: "" if attributes[name] == value else reason


no_mask = without("mask", "peft draws its dropout itself and takes no mask")
