"""X-LoRA in peft's files: the classifier's tensors, and a folder for each adapter that it mixes.

peft 0.21 saves a layer of the classifier under the adapter whose name is its number, and of the adapters what is in layers of
theirs, see docs/findings/peft-xlora-saved.md. It loads adapters from where they were trained, and the classifier where it
should be: so it is written here, and read from either place.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refpeft.errors import AttributeValueError, CapabilityError, FormatError
from refpeft.files import read_json
from refpeft.formats import safetensors
from refpeft.formats.adapter import Adapter
from refpeft.formats.peft_fields import CONFIG, INERT
from refpeft.formats.peft_fields import TENSORS as FILE
from refpeft.formats.safetensors import Lazy
from refpeft.methods import Arrays
from refpeft.methods.lora import LoRA, RsLoRA
from refpeft.methods.xlora import GATES, XLoRA

KIND = "XLORA"
_LAYERS = "base_model.internal_xlora_classifier.layers"
_FIELDS = {
    "temperature": ("softmax_temperature", 1.0),
    "depth": ("xlora_depth", 1),
    "size": ("xlora_size", 2048),
    "layerwise": ("layerwise_scalings", False),
    "softmax": ("enable_softmax", True),
    "top": ("top_k_lora", 0),
    "renormalised": ("enable_softmax_topk", False),
    "first_pass": ("scaling_pass_value", 0.0),
    "classifier_dropout": ("xlora_dropout_p", 0.2),
}
"""peft's fields, and what they are where they are not there."""
_READ = f"adapters hidden_size global_scaling_weight {' '.join(theirs for theirs, _ in _FIELDS.values())}"
_TRAINING = "use_trainable_adapters"


def folders(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Of the adapters: where peft found them, or beside the classifier.

    Raises
    ------
    FormatError
        If one is in neither place.
    CapabilityError
        If one is not LoRA, or a field changes what is computed in a way that is not known here.
    """
    known = {*INERT.split(), *_READ.split(), *_TRAINING.split()}
    for name, value in config.items():
        if name not in known and value:
            raise CapabilityError(f"{folder / CONFIG}: {name} is {json.dumps(value)}, which is not understood here.")
    named = config.get("adapters")
    if not isinstance(named, dict) or not named or not all(isinstance(path, str) for path in named.values()):
        raise FormatError(f"{folder / CONFIG}: adapters must be folders by name, but {json.dumps(named)} came.")
    found = []
    for name, path in named.items():
        there = [place for place in (Path(path), folder / name) if (place / CONFIG).is_file()]
        if not there:
            raise FormatError(f"{folder}: the adapter {name!r} lies neither at {path} nor beside the classifier.")
        if (kind := read_json(there[0] / CONFIG).get("peft_type")) != "LORA":
            raise CapabilityError(f"{there[0] / CONFIG}: X-LoRA mixes LoRA, but {kind} came.")
        found.append(there[0])
    return found


def classifier(folder: Path, archive: Lazy) -> dict[str, np.ndarray]:
    """The tensors of a folder's file, and those that lie astray: layer ``i`` of the classifier, taken for adapter ``i``'s, under
    that adapter's name and without its own.
    """
    found = {}
    for path in sorted(folder.glob(f"*/{FILE}")):
        astray = safetensors.scan(path)
        for end in ("weight", "bias"):
            if (name := f"{_LAYERS}.{end}") in astray:
                found[f"{_LAYERS}.{path.parent.name}.{end}"] = np.array(astray[name])
    return found | {name: np.array(archive[name]) for name in archive}


def unlike(method: XLoRA) -> str:
    """What peft makes of the method that nobody can say beforehand; "" where it makes what it says."""
    if method.first_pass and 0 < method.top < method.experts:
        return "leaves it to torch which of the first pass's gates, which are equal, are kept"
    return ""


def _named(method: XLoRA) -> dict[str, dict[str, str]]:
    """peft's names of the classifier's arrays, by site: its layers are counted with the ReLU and the dropout between them."""
    numbers = [j * (3 if method.classifier_dropout else 2) for j in range(method.depth)]
    below = {
        f"{GATES}.{j}": {n: f"{_LAYERS}.{number}.{n}" for n in ("weight", "bias")}
        for j, number in enumerate(numbers[:-1])
    }
    return below | {GATES: {"head": f"{_LAYERS}.{numbers[-1]}.weight", "head_bias": f"{_LAYERS}.{numbers[-1]}.bias"}}


def decode(
    where: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], experts: Sequence[Adapter]
) -> tuple[XLoRA, Arrays]:
    """The method, and its arrays by site.

    Raises
    ------
    FormatError
        If the classifier is not there, or is not one for these adapters.
    CapabilityError
        If what peft computes is not said by its fields.
    """
    scaling, arrays = together(experts)
    weight = config.get("global_scaling_weight", 1.0)
    if type(weight) not in (int, float) or not math.isfinite(weight):
        raise FormatError(f"{where.parent / CONFIG}: global_scaling_weight must be finite, but {weight!r} came.")
    given = {ours: config.get(theirs, otherwise) for ours, (theirs, otherwise) in _FIELDS.items()}
    try:
        method = XLoRA(experts=len(experts), scaling=scaling * weight, **given | {"top": given["top"] or 0})
    except AttributeValueError as error:
        raise FormatError(f"{where.parent / CONFIG}: {error}") from error
    if why := unlike(method):
        raise CapabilityError(f"{where.parent / CONFIG}: with top_k_lora and scaling_pass_value peft {why}.")
    named = _named(method)
    known = {theirs for names in named.values() for theirs in names.values()}
    if missing := [name for name in sorted(known) if name not in tensors]:
        raise FormatError(f"{where}: there is no {missing[0]}, expected X-LoRA's classifier.")
    if strange := tensors.keys() - known:
        raise FormatError(f"{where}: the tensor {min(strange)!r} belongs to nothing that {KIND} has.")
    found = {site: {ours: np.asarray(tensors[theirs]) for ours, theirs in its.items()} for site, its in named.items()}
    widths, rows = [config.get("hidden_size"), *[method.size] * (method.depth - 1)], method.rows(len(arrays))
    for (site, its), i, o in zip(found.items(), widths, [*widths[1:], rows]):
        for (name, array), wanted in zip(its.items(), ((o, i), (o,))):
            if array.shape != wanted:
                raise FormatError(f"{where}: {named[site][name]} has shape {array.shape}, but the fields say {wanted}.")
    return method, found | dict(arrays)


def together(experts: Sequence[Adapter]) -> tuple[float, Arrays]:
    """A scaling for all adapters, and ``a`` (k, r, i) and ``b`` (k, o, r) of every matrix that one of them stands at.

    One of a smaller rank, or that does not stand there, is filled up with zeros; one with another scaling than the first has it
    in its B.

    Raises
    ------
    CapabilityError
        If one is not LoRA.
    FormatError
        If they are of matrices of several sizes.
    """
    for expert in experts:
        if not isinstance(expert.method, LoRA | RsLoRA):
            raise CapabilityError(f"X-LoRA mixes LoRA, but {expert.method!r} came.")
    scalings = [expert.method.attributes()["scaling"] for expert in experts]
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for site in dict.fromkeys(site for expert in experts for site in expert.arrays):
        own = [expert.arrays.get(site) for expert in experts]
        there = [its for its in own if its]
        sizes = {(len(its["b"]), its["a"].shape[1]) for its in there}
        if len(sizes) > 1:
            raise FormatError(f"{site}: adapters that are mixed are of one matrix, but of the sizes {sizes} they came.")
        (o, i), rank = sizes.pop(), max(len(its["a"]) for its in there)
        a = np.zeros((len(own), rank, i), there[0]["a"].dtype)
        b = np.zeros((len(own), o, rank), there[0]["b"].dtype)
        for k, its in enumerate(own):
            if its:
                a[k, : len(its["a"])] = its["a"]
                b[k, :, : len(its["a"])] = its["b"] * (scalings[k] / scalings[0])
        arrays[site] = {"a": a, "b": b}
    return scalings[0], arrays


def apart(adapter: Adapter) -> dict[str, tuple[LoRA, Arrays]]:
    """The adapters that are mixed, by the names that peft has for them."""
    method = adapter.method
    sites = {s: its for s, its in adapter.arrays.items() if not f"{s}.".startswith(f"{GATES}.")}
    rank = len(next(iter(sites.values()))["a"][0])
    alike = LoRA(rank=rank, alpha=method.scaling * rank)  # type: ignore[attr-defined]
    return {
        str(k): (alike, {site: {n: np.asarray(its[n])[k] for n in "ab"} for site, its in sites.items()})
        for k in range(method.experts)  # type: ignore[attr-defined]
    }


def encode(folder: Path, adapter: Adapter) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and tensors; the adapters lie in folders beside them."""
    method = adapter.method
    assert isinstance(method, XLoRA)
    named = _named(method)
    fields = {
        "peft_type": KIND,
        "adapters": {name: os.path.abspath(folder / name) for name in apart(adapter)},
        "hidden_size": next(iter(adapter.arrays[next(iter(named))].values())).shape[1],
        "global_scaling_weight": 1.0,
    }
    fields |= {theirs: getattr(method, ours) for ours, (theirs, _) in _FIELDS.items()}
    fields["top_k_lora"] = method.top or None
    tensors = {
        theirs: np.asarray(adapter.arrays[site][ours]) for site, its in named.items() for ours, theirs in its.items()
    }
    return fields, tensors
