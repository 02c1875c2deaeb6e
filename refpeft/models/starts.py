"""Starts from data: what a method's `init` asks for, under its own name for it, is collected by running a model over texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    from refpeft.models.transformer import Transformer

    Model = TypeVar("Model", bound=Transformer)


def collected(
    model: Transformer, sites: Sequence[str], method: Method, batches: Sequence[np.ndarray]
) -> dict[str, dict[str, Any]]:
    """For each site what the method's start needs, by name.

    Parameters
    ----------
    model : Transformer
        As it is, with what stands in it, but plain at the sites.
    sites : sequence of str
    method : Method
    batches : sequence of (n, s) int64
        Token ids.

    Raises
    ------
    AttributeValueError
        If batches are needed, but none came.
    CapabilityError
        If an encoder is to give a loss's gradients.
    """
    wanted, batches = needs_of(method), [ids for ids in batches if np.size(ids)]
    if wanted and not batches:
        raise AttributeValueError(
            f"{type(method).__name__} starts from the layers' {' and '.join(wanted)}: batches of token ids are needed, "
            "but none came."
        )
    if "gradient" in wanted and not model.shape.causal:
        raise CapabilityError(
            f"{type(method).__name__} starts from the gradients of a language model's loss, which an encoder has not."
        )
    collect: dict[str, Callable[..., dict[str, Any]]] = {
        "inputs": partial(inputs, seen=method.seen),
        "gradient": gradients,
    }
    found = {name: collect[name](model, sites, batches) for name in wanted}
    return {site: {name: of[site] for name, of in found.items()} for site in sites}


def inputs(
    model: Transformer, sites: Sequence[str], batches: Sequence[np.ndarray], seen: Callable = np.asarray
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
    for ids in batches:
        plain.through(ids)
    return {site: found[first[site]] for site in sites}


def gradients(model: LanguageModel, sites: Sequence[str], batches: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The loss's gradient to the weight of each site, in the mean over the batches."""
    plain, total = _plain(model, sites), dict.fromkeys(sites, np.zeros(()))
    for site in sites:
        layer = plain.sites[site]
        weight = layer.arrays["weight"]
        decoded = weight.decoded() if isinstance(weight, Base) else weight
        plain.sites[site] = replace(layer, arrays=layer.arrays | {"weight": decoded}, trained=("weight",))
    for ids in batches:
        _, found = plain.loss(ids)
        total = {site: sums + model.host(found[f"{site}.weight"]).astype(np.float64) for site, sums in total.items()}
    return {site: sums / len(batches) for site, sums in total.items()}


def _plain(model: Model, sites: Sequence[str]) -> Model:
    """The same model with nothing at the sites but their matrices."""
    plain = model.twin()
    for site in sites:
        plain.sites[site] = plain.bare(site)
    return plain
