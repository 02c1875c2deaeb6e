"""What an adapter costs where it is used: time over the base's, tokens of the context, and bytes kept for a task.

A merged adapter costs no time, but its weights are a copy of the model for each task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from refpeft import intervals
from refpeft.formats import adapters
from refpeft.formats.adapter import Adapter
from refpeft.formats.names import HEAD
from refpeft.models import LanguageModel, TextClassifier
from refpeft.models.calls import Calls
from refpeft.models.sites import Layer

Model = TypeVar("Model", LanguageModel, TextClassifier)


class Variant(NamedTuple):
    """A model as it is, with an adapter, or with one merged.

    Attributes
    ----------
    name : str
        The adapter's; empty for the model as it is.
    model : LanguageModel or TextClassifier
    bytes : int
        That are kept for a task.
    """

    name: str
    model: Any
    bytes: int


def variants(base: Model, loaded: Mapping[str, Adapter], all: bool) -> Iterator[Variant]:
    """Each adapter over the base, or the base where there is none; with ``all``, the base before them, and each one merged."""
    if all or not loaded:
        yield Variant("", base, 0)
    for name, adapter in loaded.items():
        twin = base.twin()
        adapters.attach(twin, adapter)
        yield Variant(name, twin, kept(adapter))
        if all and not adapter.method.not_mergeable:
            yield Variant(f"{name}, merged", merged(base, adapter), copied(base))


def kept(adapter: Adapter) -> int:
    """Bytes of the arrays of an adapter, and of the head that comes with it; one that sites share counts once."""
    sites = [*adapter.arrays.values(), *adapter.head.values()]
    return sum({id(array): array.nbytes for arrays in sites for array in arrays.values()}.values())


def copied(model: Model) -> int:
    """Bytes of a whole model in float32, as adapters are: 4 a parameter, those of a classifier's head among them."""
    head = [model.places[site].weight.shape for site in HEAD if site in model.places]
    return 4 * (model.shape.parameters() + sum(o * (i + 1) for o, i in head))


def measured(base: Model, variant: Variant, rows: Mapping[str, Any], rounds: int) -> dict[str, float]:
    """A variant's overhead, its tokens of the context, its bytes, and their share of a whole copy's.

    ``rows`` is what `logits` takes, by name.
    """
    low, overhead, high = timed(base, variant.model, rows, rounds)
    share = variant.bytes / copied(base)
    numbers = {"rounds": rounds, "overhead": overhead, "low": low, "high": high, "context": context(variant.model)}
    return numbers | {"bytes": variant.bytes, "share": share}


def timed(base: Model, other: Model, rows: Mapping[str, Any], rounds: int) -> tuple[float, float, float]:
    """By how much of the base's time a forward pass takes longer: the median over rounds that alternate, in its interval; see
    `refpeft.intervals.median`.
    """

    def forward(model):
        return model.host(model.logits(**rows))

    low, middle, high = intervals.alternating(lambda: forward(base), lambda: forward(other), rounds)["ratio"]
    return low - 1, middle - 1, high - 1


def context(model: Model) -> int:
    """Tokens that prompts and prefixes put in front of every text, for which its own have less room."""
    arrays = [layer.arrays for layer in model.sites.values()]
    prompts = [a["prompt"].shape[0] for a in arrays if "prompt" in a]
    prefixes = [a["prefix_k"].shape[-2] for a in arrays if "prefix_k" in a]
    return sum(prompts) + max(prefixes, default=0)


def merged(model: Model, adapter: Adapter) -> Model:
    """A twin of the base with the adapter in its matrices: merged by the model's backend, by the reference where it lacks that.

    Raises
    ------
    CapabilityError
        If the method cannot be merged.
    """
    twin, backend = model.twin(), model.backend
    for site, arrays in adapter.arrays.items():
        weight = model.host(model.places[site].weight)
        problem = adapter.method.merging(weight, arrays)
        name, inputs = problem.operation.name, {n: model.asarray(a) for n, a in problem.inputs.items()}
        if name in backend.operations():
            both = {"weight": Calls(backend).forward(name, inputs, False, **problem.attributes)[0]}
        else:
            both = {"weight": model.asarray(adapter.method.merge(weight, arrays))}
        if "bias" in (there := model.sites[site].arrays):
            both["bias"] = model.asarray(adapter.method.merge_bias(model.host(there["bias"]), arrays))
        twin.sites[site] = Layer("nn.linear", both)
    return twin
