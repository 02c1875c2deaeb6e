"""Starts from data: what a method's `init` asks for, under its own name for it, is collected by running a model over texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from refpeft.errors import AttributeValueError, CapabilityError
from refpeft.methods import Method, needs_of
from refpeft.models.four_bit import Base
from refpeft.ops.lora_inputs import Inputs

if TYPE_CHECKING:
    from refpeft.models.language import LanguageModel
    from refpeft.models.text_classifier import TextClassifier
    from refpeft.models.transformer import Transformer

    Model = TypeVar("Model", bound=Transformer)


Batch = np.ndarray | Mapping[str, Any]
"""Token ids (n, s); or with labels, for a classifier, what its `loss` takes by name: ids, labels and mask."""


def collected(
    model: Transformer, sites: Sequence[str], method: Method, batches: Sequence[Batch]
) -> dict[str, dict[str, Any]]:
    """For each site what the method's start needs, by name.

    Parameters
    ----------
    model : Transformer
        As it is, with what stands in it, but plain at the sites.
    sites : sequence of str
    method : Method
    batches : sequence of Batch

    Raises
    ------
    AttributeValueError
        If batches are needed, but none came.
    CapabilityError
        If an encoder is to give a loss's gradients without labels.
    """
    named = [batch if isinstance(batch, Mapping) else {"ids": batch} for batch in batches]
    wanted, batches = needs_of(method), [batch for batch in named if np.size(batch["ids"])]
    if wanted and not batches:
        raise AttributeValueError(
            f"{type(method).__name__} starts from the layers' {' and '.join(wanted)}: batches of token ids are needed, "
            "but none came."
        )
    labelled = hasattr(model, "labels") and all("labels" in batch for batch in batches)
    if "gradient" in wanted and not (model.shape.causal or labelled):
        raise CapabilityError(
            f"{type(method).__name__} starts from the gradients of a loss, which an encoder has as a classifier only, of "
            "batches with labels."
        )
    collect: dict[str, Callable[..., dict[str, Any]]] = {
        "inputs": partial(inputs, seen=method.seen),
        "gradient": gradients,
    }
    found = {name: collect[name](model, sites, batches) for name in wanted}
    return {site: {name: of[site] for name, of in found.items()} for site in sites}


def inputs(
    model: Transformer, sites: Sequence[str], batches: Sequence[Mapping[str, Any]], seen: Callable = np.asarray
) -> dict[str, Inputs]:
    """The inputs of each site, as ``seen`` has those of a batch. Sites next to each other that are given the same array, as q, k
    and v are, share one account.
    """
    found: dict[str, Inputs] = {}
    first: dict[str, str] = {}
    last: tuple[Any, str] = (None, "")

    def watch(site: str, x) -> None:
        nonlocal last
        if site not in sites:
            return
        if x is not last[0]:
            last, here = (x, site), Inputs.of(seen(model.host(x)))
            found[site] = found[site].joined(here) if site in found else here
        first[site] = last[1]

    plain = _plain(model, sites)
    plain.watch = watch
    for ids in (ids for batch in batches for ids in _alone(batch)):
        plain.through(ids)
    return {site: found[first[site]] for site in sites}


def gradients(
    model: LanguageModel | TextClassifier, sites: Sequence[str], batches: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """The loss's gradient to the weight of each site, in the mean over the batches."""
    plain, total = _plain(model, sites), dict.fromkeys(sites, np.zeros(()))
    for site in sites:
        layer = plain.sites[site]
        weight = layer.arrays["weight"]
        decoded = weight.decoded() if isinstance(weight, Base) else weight
        plain.sites[site] = replace(layer, arrays=layer.arrays | {"weight": decoded}, trained=("weight",))
    for batch in batches:
        _, found = plain.loss(**batch)
        total = {site: sums + model.host(found[f"{site}.weight"]).astype(np.float64) for site, sums in total.items()}
    return {site: sums / len(batches) for site, sums in total.items()}


def _alone(batch: Mapping[str, Any]) -> list[np.ndarray]:
    """Token ids (n, s) without any padding: each row by itself, where it has some."""
    if (mask := batch.get("mask")) is None:
        return [batch["ids"]]
    return [row[its][None] for row, its in zip(batch["ids"], mask)]


def _plain(model: Model, sites: Sequence[str]) -> Model:
    """The same model with nothing at the sites but their matrices."""
    plain = model.twin()
    for site in sites:
        plain.sites[site] = plain.bare(site)
    return plain
