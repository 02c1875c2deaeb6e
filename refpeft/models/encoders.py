"""Reparametrised prompts and prefixes: an encoder is trained, and layers take what it gives for their own arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from refpeft.methods import Method
from refpeft.methods.prefix import PTuningV2
from refpeft.methods.prompt import PromptTuning
from refpeft.models.calls import Call, Calls
from refpeft.ops import prefix

ENCODED = {"ptuning.mlp": "prompt.embed", "ptuning.lstm": "prompt.embed", "prefix.encode": "prefix.attention"}
"""What encodes, and the operation that takes what it gives."""

GIVEN = {"prompt.embed": ("prompt",), "prefix.attention": ("prefix_k", "prefix_v")}
"""The arrays of that operation which it gives."""


def init(method: Method, random: np.random.Generator, weight: np.ndarray, layers: int) -> dict[str, np.ndarray]:
    """An encoder's arrays at the start; one for the prefixes of several layers is as wide as they are together."""
    if isinstance(method, PTuningV2):
        method.fits(*weight.shape)
        width, hidden = len(weight), method.hidden  # type: ignore[attr-defined]
        return prefix.init_encoder(random, method.tokens, width, hidden, 2 * layers * width)
    return method.init(random, weight)


def dropped(method: Method) -> Method:
    """What is left of a method when its encoder has gone and only what it gave is kept."""
    if method.operation == "prefix.encode":
        return method.flat()  # type: ignore[attr-defined]
    return PromptTuning(tokens=method.tokens) if method.operation in ENCODED else method  # type: ignore[attr-defined]


class Encoder(NamedTuple):
    """An encoder, and the sites that it encodes for.

    Attributes
    ----------
    operation : str
    arrays : dict of str to array
    trained : tuple of str
    sites : tuple of str
    size : int
        Elements of a head, which a prefix is cut into.
    """

    operation: str
    arrays: dict[str, Any]
    trained: tuple[str, ...]
    sites: tuple[str, ...]
    size: int

    def forward(self, run: Calls, keep: bool) -> tuple[dict[str, dict[str, Any]], list[Call]]:
        """The arrays of each site, and the calls that gave them."""
        flat, encoding = run.forward(self.operation, self.arrays, keep)
        if self.operation != "prefix.encode":
            return {site: {"prompt": flat} for site in self.sites}, [encoding]
        layers = len(self.sites)
        groups = flat.shape[1] // (2 * layers * self.size)
        (keys, values), cutting = run.forward("prefix.cut", {"flat": flat}, keep, l=layers, g=groups, d=self.size)
        each = {s: {"prefix_k": keys[i], "prefix_v": values[i]} for i, s in enumerate(self.sites)}
        return each, [encoding, cutting]

    def vjp(self, run: Calls, calls: list[Call], gradients: Mapping[str, Any], stack: Callable) -> dict[str, Any]:
        """Gradients to what is trained, by ``encoder.ARRAY``, from those to what it gave."""
        if len(calls) == 1:
            dflat = gradients[f"{self.sites[0]}.prompt"]
        else:
            both = tuple(stack([gradients[f"{s}.{n}"] for s in self.sites]) for n in GIVEN["prefix.attention"])
            dflat = run.vjp(calls[1], both, ["flat"])["flat"]
        return {f"encoder.{n}": g for n, g in run.vjp(calls[0], dflat, self.trained).items()}
