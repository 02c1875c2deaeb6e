"""X-LoRA in peft's files: the classifier's tensors, and a folder for each adapter that it mixes.

peft 0.21 saves the classifier under the first adapter, whose name is a part of its own, and of the adapters what is in layers of
their number, see docs/findings/peft-xlora-saved.md. It loads adapters from where they were trained, and the classifier where it
should be: so it is written here, and read from either place.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refpeft.errors import CapabilityError, FormatError
from refpeft.files import read_json
from refpeft.formats import safetensors
from refpeft.formats.peft_fields import CONFIG, INERT
from refpeft.formats.peft_fields import TENSORS as FILE
from refpeft.formats.safetensors import Lazy
from refpeft.methods import Arrays
from refpeft.methods.lora import LoRA, RsLoRA
from refpeft.methods.xlora import GATES, XLoRA

if TYPE_CHECKING:
    from refpeft.formats.peft import Adapter

KIND = "XLORA"
_LAYER = "base_model.internal_xlora_classifier.layers.0"
TENSORS = {"head": f"{_LAYER}.weight", "head_bias": f"{_LAYER}.bias"}
_ASTRAY = {name: name.replace(".0.", ".") for name in TENSORS.values()}
"""What peft calls them under the first adapter."""
ONLY = {
    "enable_softmax": True,
    "enable_softmax_topk": False,
    "layerwise_scalings": False,
    "scaling_pass_value": 0.0,
    "top_k_lora": None,
    "xlora_depth": 1,
}
"""Fields that are read with this value alone, which is peft's own."""
_READ = "adapters hidden_size softmax_temperature global_scaling_weight"
_TRAINING = "use_trainable_adapters xlora_dropout_p xlora_size"


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
        if value != ONLY[name] if name in ONLY else name not in known and value:
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
    """The tensors of a folder's file; the classifier's, where they are not there, from the first adapter's."""
    tensors = {name: np.array(archive[name]) for name in archive}
    first = folder / "0" / FILE
    if not tensors and first.is_file():
        astray = safetensors.scan(first)
        tensors = {name: np.array(astray[theirs]) for name, theirs in _ASTRAY.items() if theirs in astray}
    return tensors


def decode(
    where: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], experts: Sequence[Adapter]
) -> tuple[XLoRA, Arrays]:
    """The method, and its arrays by site.

    Raises
    ------
    FormatError
        If the classifier is not there, or is not one for these adapters.
    """
    if missing := [name for name in TENSORS.values() if name not in tensors]:
        raise FormatError(f"{where}: there is no {missing[0]}, expected X-LoRA's classifier.")
    if strange := tensors.keys() - set(TENSORS.values()):
        raise FormatError(f"{where}: the tensor {min(strange)!r} belongs to nothing that {KIND} has.")
    head = {ours: np.asarray(tensors[theirs]) for ours, theirs in TENSORS.items()}
    wanted = {"head": (len(experts), config.get("hidden_size")), "head_bias": (len(experts),)}
    if came := {TENSORS[n]: a.shape for n, a in head.items() if a.shape != wanted[n]}:
        (name, shape), *_ = came.items()
        raise FormatError(f"{where}: {name} has shape {shape}, but adapters and hidden_size say {(*wanted.values(),)}.")
    numbers = [config.get(name, 1.0) for name in ("softmax_temperature", "global_scaling_weight")]
    if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers) or numbers[0] <= 0:
        raise FormatError(
            f"{where.parent / CONFIG}: softmax_temperature must be above 0 and global_scaling_weight finite, but {numbers} came."
        )
    scaling, arrays = together(experts)
    method = XLoRA(experts=len(experts), temperature=numbers[0], scaling=scaling * numbers[1])
    return method, {GATES: head} | dict(arrays)


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
    method, sites = adapter.method, {s: its for s, its in adapter.arrays.items() if s != GATES}
    rank = len(next(iter(sites.values()))["a"][0])
    alike = LoRA(rank=rank, alpha=method.scaling * rank)  # type: ignore[attr-defined]
    return {
        str(k): (alike, {site: {n: np.asarray(its[n])[k] for n in "ab"} for site, its in sites.items()})
        for k in range(method.experts)  # type: ignore[attr-defined]
    }


def encode(folder: Path, adapter: Adapter) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and tensors; the adapters lie in folders beside them."""
    method, head = adapter.method, adapter.arrays[GATES]
    fields = {
        "peft_type": KIND,
        "adapters": {name: os.path.abspath(folder / name) for name in apart(adapter)},
        "hidden_size": head["head"].shape[1],
        "softmax_temperature": method.temperature,  # type: ignore[attr-defined]
        "global_scaling_weight": 1.0,
    }
    return ONLY | fields, {theirs: np.asarray(head[ours]) for ours, theirs in TENSORS.items()}
