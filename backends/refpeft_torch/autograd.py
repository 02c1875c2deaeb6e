"""From a torch function to an implementation: forward under autograd, vjp by ``torch.autograd.grad``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import torch

from refpeft.backend import Implementation

_FUNCTIONS: dict[str, Callable] = {}


def implements(operation: str):
    """Declare the decorated torch function as the implementation of ``operation``.

    Its positional parameters are the operation's inputs by name, its keyword-only ones the attributes.
    """

    def declare(function):
        _FUNCTIONS[operation] = function
        return function

    return declare


def implementations() -> dict[str, Implementation]:
    """Every declared function as an `Implementation`; each module of this package is a family."""
    import refpeft_torch

    for module in pkgutil.iter_modules(refpeft_torch.__path__):
        importlib.import_module(f"refpeft_torch.{module.name}")
    return {name: implementation(function) for name, function in sorted(_FUNCTIONS.items())}


def implementation(function: Callable) -> Implementation:
    """The function's values as forward, its gradients by autograd as vjp."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    def forward(*inputs, residuals=True, **attributes):
        if not residuals:
            with torch.no_grad():
                return _tuple(function(*inputs, **attributes)), None
        asked = names if residuals is True else residuals
        leaves = [_leaf(x, name in asked) for name, x in zip(names, inputs)]
        with torch.enable_grad():
            outputs = _tuple(function(*leaves, **attributes))
        return tuple(y.detach() for y in outputs), (dict(zip(names, leaves)), outputs)

    def vjp(residuals, cotangents, wanted):
        leaves, outputs = residuals
        outputs, cotangents = zip(*((y, dy) for y, dy in zip(outputs, cotangents) if y.requires_grad))
        wanted = [leaves[name] for name in wanted]
        return tuple(torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True, materialize_grads=True))

    return Implementation(forward, vjp)


def _leaf(x, wanted: bool):
    """The input, with the gradients that may be wanted of it."""
    return x.detach().requires_grad_() if wanted and x is not None and x.is_floating_point() else x


def _tuple(outputs) -> tuple:
    return outputs if isinstance(outputs, tuple) else (outputs,)
