"""X-LoRA in a decoder: adapters that were trained before, mixed at every token by gates of its own.

A first pass goes through the model as it is, without its adapters. What comes out above the last norm is read by a classifier,
whose gates the layers of the second pass take beside their inputs:

    g = softmax((C h + c) / T)        y = x Wᵀ + s (sum over k of g_k x A_kᵀ B_kᵀ)

The gradient goes from all layers to the gates and to the classifier, which alone is trained, not through the first pass, as peft
has it.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from refpeft.errors import CapabilityError, ShapeError
from refpeft.methods import Arrays, Method
from refpeft.methods.shadow import BACKBONE
from refpeft.methods.xlora import GATES
from refpeft.models.parts import Vjp
from refpeft.models.places import MIXING, Layer, require_for

if TYPE_CHECKING:
    from refpeft.models.language import LanguageModel
    from refpeft.models.sites import Sites


def attach(model: Sites, pattern: str, method: Method, random: np.random.Generator, arrays: Arrays | None) -> None:
    """Put adapters at every matrix that matches, and above the model the classifier, drawn where it did not come.

    Parameters
    ----------
    arrays : mapping of site to mapping of str to array
        ``a`` (k, r, i) and ``b`` (k, o, r) of each matrix; ``head`` (k, d) and ``head_bias`` (k,) under ``gates``.

    Raises
    ------
    CapabilityError
        If there are no adapters, or the model is no decoder, or has a shadow.
    ShapeError
        If they are not of as many as the method says.
    """
    if GATES not in model.places:
        raise CapabilityError("X-LoRA's gates stand above a decoder, but an encoder came.")
    if f"{BACKBONE}.norm" in model.sites:
        raise CapabilityError("X-LoRA and a shadow do not stand in one model, where each has a pass of its own.")
    if arrays is None or not arrays.keys() - {GATES}:
        raise CapabilityError("X-LoRA mixes adapters that were trained before, but none came: give their arrays.")
    chosen = model._matching(pattern, MIXING[method.operation])
    require_for(chosen, {site: its for site, its in arrays.items() if site != GATES})
    head = arrays.get(GATES) or method.init(random, model.weight(GATES))
    counts = {len(head["head"])} | {len(arrays[site][n]) for site in chosen for n in "ab" if n in arrays[site]}
    if counts != {method.experts}:  # type: ignore[attr-defined]
        raise ShapeError(f"{method!r} has as many adapters as it says, but {sorted(counts)} came.")
    scaling, stated = {"scaling": method.scaling}, method.attributes()  # type: ignore[attr-defined]
    for site in chosen:
        given = {name: model.asarray(array) for name, array in arrays[site].items()}
        layer = Layer(MIXING[method.operation], given, (), scaling, tuple(given), method=method)
        model._place(site, layer)
    given = {name: model.asarray(array) for name, array in head.items()}
    model._place(GATES, Layer(method.operation, given, method.trainable, stated, tuple(given), method=method))


def gated(model: LanguageModel, ids: np.ndarray, keep: bool, cache: list | None = None) -> tuple[Any, Vjp]:
    """The model with each token's gates in its layers, and what makes of their gradients the classifier's.

    Parameters
    ----------
    cache : list, optional
        Of the first pass.
    """
    mixed = {site: layer for site, layer in model.sites.items() if layer.operation in MIXING.values()}
    if not mixed:
        return model, lambda gradients: None
    first, second = copy(model), copy(model)
    first.sites = {site: model.bare(site) if site in mixed else layer for site, layer in model.sites.items()}
    hidden, _ = first._read(ids, keep=False, cache=cache)
    gates, call = model.call(GATES, {"hidden": hidden}, keep)
    second.sites = model.sites | {
        site: replace(layer, arrays={**layer.arrays, GATES: gates}, trained=(GATES,)) for site, layer in mixed.items()
    }

    def vjp(gradients):
        model.vjp(GATES, call, reduce(add, [gradients.pop(f"{site}.{GATES}") for site in mixed]), gradients, [])

    return second, vjp
