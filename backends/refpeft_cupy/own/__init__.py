"""Operations by CUDA kernels of our own: on the GPU, and on the host shim with the same source."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable

from refpeft.backend import Implementation
from refpeft_cupy.launch import on_behalf_of
from refpeft_cupy.own._arrays import device_of

_FORWARD: dict[str, Callable] = {}
_VJP: dict[str, Callable] = {}


def implements(operation: str):
    """Declare a function of inputs and attributes that returns ``(outputs, residuals)``."""

    def declare(function):
        _FORWARD[operation] = function
        return function

    return declare


def vjp_of(operation: str):
    """Declare a function ``(residuals, cotangents, wanted) -> gradients``."""

    def declare(function):
        _VJP[operation] = function
        return function

    return declare


@functools.cache
def implementations() -> dict[str, Implementation]:
    """Every operation that has kernels of its own, for arrays on a GPU and on the host alike."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {name: _implementation(name) for name in sorted(_FORWARD)}


def _implementation(operation: str) -> Implementation:
    def forward(*inputs, residuals=True, **attributes):
        with on_behalf_of(operation), device_of(inputs):
            outputs, kept = _FORWARD[operation](*inputs, **attributes)
        return outputs, kept if residuals else None

    def vjp(residuals, cotangents, wanted):
        with on_behalf_of(operation), device_of(cotangents):
            return _VJP[operation](residuals, cotangents, wanted)

    return Implementation(forward, vjp if operation in _VJP else None, source="own")
