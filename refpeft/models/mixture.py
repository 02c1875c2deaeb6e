"""X-LoRA in a decoder: adapters that were trained before, mixed at every token by gates of its own.

A first pass goes through the model as it is, without its adapters, or with all of them under one gate that is given. What comes
out above the last norm is read by a classifier, whose gates the layers of the second pass take beside their inputs:

    g = softmax((C f(h) + c) / T)        y = x Wᵀ + s (sum over k of g_k drop_k(x) A_kᵀ B_kᵀ)

f are the classifier's layers below its head, each with a ReLU and, in training, dropout behind it, where there are any. Of the
gates the largest may be kept alone, in both passes, and each layer may have its own, see `refpeft.methods.XLoRA`.

The gradient goes from all layers to the gates and to the classifier, which alone is trained, not through the first pass, as peft
has it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from refpeft.errors import CapabilityError, ShapeError
from refpeft.methods import Arrays
from refpeft.methods.shadow import BACKBONE
from refpeft.methods.xlora import GATES, XLoRA
from refpeft.models.attention import cached
from refpeft.models.calls import Call
from refpeft.models.dropout import dropped
from refpeft.models.parts import Vjp, embedded
from refpeft.models.places import MIXING, Layer, Place, require_fitting, require_for

if TYPE_CHECKING:
    from refpeft.models.language import LanguageModel


def attach(
    model: LanguageModel, pattern: str, method: XLoRA, random: np.random.Generator, arrays: Arrays | None
) -> None:
    """Put adapters at every matrix that matches, and above the model the classifier, drawn where it did not come.

    Parameters
    ----------
    arrays : mapping of site to mapping of str to array
        ``a`` (k, r, i) and ``b`` (k, o, r) of each matrix; ``head`` (k, d) and ``head_bias`` (k,) under ``gates``, those of all
        matrices one behind the other where each has its own; ``weight`` and ``bias`` of the layers below the head under
        ``gates.0`` and so on.

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
    if arrays is None or all(map(_of_classifier, arrays)):
        raise CapabilityError("X-LoRA mixes adapters that were trained before, but none came: give their arrays.")
    chosen = model._matching(pattern, MIXING[method.operation])
    require_for(chosen, {site: its for site, its in arrays.items() if not _of_classifier(site)})
    counts = {len(arrays[site][n]) for site in chosen for n in "ab" if n in arrays[site]}
    if counts != {method.experts}:
        raise ShapeError(f"{method!r} has as many adapters as it says, but {sorted(counts)} came.")
    made = method.layers(random, model.weight(GATES).shape[1], len(chosen))
    if brought := {site: its for site, its in arrays.items() if _of_classifier(site)}:
        require_for([*made], brought)
        _require_alike(method, made, brought)
        made = brought
    for site in [site for site in model.sites if _of_classifier(site)]:
        del model.sites[site]
    scaling = {"scaling": method.scaling}
    for site in chosen:
        given = {name: model.asarray(array) for name, array in arrays[site].items()}
        layer = Layer(MIXING[method.operation], given, (), scaling, tuple(given), method=method)
        model._place(site, layer)
    for site, its in made.items():
        given = {name: model.asarray(array) for name, array in its.items()}
        head = site == GATES
        operation, stated = (method.operation, method.attributes()) if head else ("nn.linear", {})
        layer = Layer(operation, given, tuple(its), stated, tuple(its), method=method)
        first = given["head" if head else "weight"]
        place = Place("gates", model.tables["embedding"], {"hidden": (1, 1, first.shape[1])})
        if head:
            require_fitting(site, place, layer)
        model.places = model.places | {site: place}
        model.sites[site] = layer


def _of_classifier(site: str) -> bool:
    return f"{site}.".startswith(f"{GATES}.")


def _require_alike(method: XLoRA, made: Arrays, brought: Arrays) -> None:
    """Refuse a classifier that is not as the method and the model would have it."""
    for site, its in made.items():
        wanted, came = ({n: tuple(np.shape(a)) for n, a in arrays.items()} for arrays in (its, brought[site]))
        if wanted != came:
            raise ShapeError(f"{site} of {method!r} has the arrays {wanted} here, but {came} came.")


def gated(model: LanguageModel, ids: np.ndarray, keep: bool, cache: list | None = None) -> tuple[Any, Vjp]:
    """The model with each token's gates in its layers, and what makes of their gradients the classifier's.

    Parameters
    ----------
    cache : list, optional
        Of the first pass.
    """
    mixed = [site for site, layer in model.sites.items() if layer.operation in MIXING.values()]
    if not mixed:
        return model, lambda gradients: None
    method = model.sites[GATES].method
    assert isinstance(method, XLoRA)
    hidden, _ = _first(model, method, mixed, ids, cache)._read(ids, keep=False, cache=cache)
    hidden, below_vjp = _below(model, hidden, keep)
    groups = [[site] for site in mixed] if method.layerwise else [mixed]
    each = [_gates(model, hidden, i, keep) for i in range(len(groups))]
    second = copy(model)
    second.sites = dict(model.sites)
    for group, (gates, _) in zip(groups, each):
        second.sites |= {site: _under(model.sites[site], gates, (GATES,)) for site in group}

    def vjp(gradients):
        sums = [reduce(add, [gradients.pop(f"{site}.{GATES}") for site in group]) for group in groups]
        found = [gates_vjp(dgates) for (_, gates_vjp), dgates in zip(each, sums)]
        for name in ("head", "head_bias"):
            parts = [its[name] for its in found]
            gradients[f"{GATES}.{name}"] = parts[0] if len(parts) == 1 else model.joined(parts, axis=0)
        below_vjp(reduce(add, [its["hidden"] for its in found]), gradients)

    return second, vjp


def _first(model: LanguageModel, method: XLoRA, mixed: list[str], ids: np.ndarray, cache: list | None) -> LanguageModel:
    """The model of the first pass, which drops other elements than the second."""
    first = copy(model)
    first.dropout = None if model.dropout is None else replace(model.dropout, within=f"{GATES}.first.")
    if not method.first_pass:
        first.sites = model.sites | {site: model.bare(site) for site in mixed}
        return first
    tokens = embedded(model, ids, keep=False, prompted=not cached(cache))[0].shape[:2]
    same = model.asarray(np.full((*tokens, method.experts), method.first_pass))
    gates, _ = _kept(model, method, same, keep=False)
    first.sites = model.sites | {site: _under(model.sites[site], gates) for site in mixed}
    return first


def _under(layer: Layer, gates, trained: tuple[str, ...] = ()) -> Layer:
    """A layer of adapters with the gates of a pass."""
    return replace(layer, arrays={**layer.arrays, GATES: gates}, trained=trained)


def _below(model: LanguageModel, hidden, keep: bool) -> tuple[Any, Vjp]:
    """What the head reads: hidden states through the classifier's layers below it."""
    calls: list[tuple[str, Call, Call, Callable]] = []
    rate = model.sites[GATES].method.classifier_dropout  # type: ignore[union-attr]
    while f"{GATES}.{len(calls)}" in model.sites:
        site = f"{GATES}.{len(calls)}"
        x, linear = model.run.forward("nn.linear", {"x": hidden, **model.sites[site].arrays}, keep)
        x, relu = model.run.forward("nn.relu", {"x": x}, keep)
        hidden, dropped_vjp = dropped(model, site, x, rate)
        calls.append((site, linear, relu, dropped_vjp))

    def vjp(dhidden, gradients):
        for site, linear, relu, dropped_vjp in reversed(calls):
            dx = model.run.vjp(relu, dropped_vjp(dhidden), ["x"])["x"]
            found = model.run.vjp(linear, dx, ["x", "weight", "bias"])
            dhidden = found.pop("x")
            gradients |= {f"{site}.{name}": gradient for name, gradient in found.items()}

    return hidden, vjp


def _gates(model: LanguageModel, hidden, number: int, keep: bool) -> tuple[Any, Callable]:
    """The gates of a layer, by its rows of the head; and from their gradient to those of rows, their biases and hidden states."""
    method, arrays = model.sites[GATES].method, model.sites[GATES].arrays
    assert isinstance(method, XLoRA)
    head, bias = (arrays[n][number * method.experts : (number + 1) * method.experts] for n in ("head", "head_bias"))
    operation, names, stated = "xlora.gates", ("hidden", "head", "head_bias"), method.attributes()
    if not method.softmax:
        operation, names, stated = "nn.linear", ("x", "weight", "bias"), {}
    gates, call = model.run.forward(operation, dict(zip(names, (hidden, head, bias))), keep, **stated)
    gates, kept_vjp = _kept(model, method, gates, keep)

    def vjp(dgates):
        found = model.run.vjp(call, kept_vjp(dgates), names)
        return {ours: found[name] for ours, name in zip(("hidden", "head", "head_bias"), names)}

    return gates, vjp


def _kept(model: LanguageModel, method: XLoRA, gates, keep: bool) -> tuple[Any, Callable]:
    """What the method keeps of the gates of a layer."""
    if not (method.top or method.renormalised):
        return gates, lambda dgates: dgates
    how = {"chosen": method.top or method.experts, "softmax": method.renormalised}
    kept, call = model.run.forward("xlora.top", {"gates": gates}, keep, **how)
    return kept, lambda dkept: model.run.vjp(call, dkept, ["gates"])["gates"]
