"""Adapters as Hugging Face peft saves them: ``adapter_config.json`` beside ``adapter_model.safetensors``.

The methods of `refpeft.formats.peft_layouts` on the matrices of a model whose names are in `refpeft.formats.names`, prompts and
prefixes (`refpeft.formats.peft_prompts`), X-LoRA (`refpeft.formats.peft_mixture`) and Shadow (`refpeft.formats.peft_shadow`).
What is read is understood or refused: a tensor that belongs nowhere, or a field that changes the computation in a way not known
here, is an error. Fields that change nothing are kept, and written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from refpeft.errors import CapabilityError, FormatError
from refpeft.files import atomic_write
from refpeft.formats import (
    peft_kinds,
    peft_lengths,
    peft_mixture,
    peft_neighbours,
    peft_numbered,
    peft_preserved,
    peft_prompts,
    peft_ranks,
    peft_shadow,
    peft_shared,
    safetensors,
)
from refpeft.formats.adapter import Adapter
from refpeft.formats.names import FAMILIES, HEAD, family_of
from refpeft.formats.peft_fields import (
    CONFIG,
    DECOMPOSED,
    TENSORS,
    configuration,
    layout_of,
    method_of,
    require_understood,
)
from refpeft.formats.peft_layouts import Layout, written
from refpeft.methods import Arrays, Method
from refpeft.methods.shadow import Shadow
from refpeft.methods.xlora import XLoRA

ROOT = "base_model.model."
"""Before every module's name."""
CLASSIFIER = "bert_classifier"
"""The family of an encoder with a classifier above it."""
_EXTRACT = "; what it changes in matrices 'refpeft extract' writes as LoRA"


def load(folder: str | os.PathLike[str]) -> Adapter:
    """Read an adapter.

    Raises
    ------
    FormatError
        If a file is missing or malformed, or a tensor is one too many or too few.
    CapabilityError
        If the method, or a field that changes what it computes, is not one that is read.
    """
    folder = Path(folder)
    config, archive = configuration(folder), safetensors.scan(folder / TENSORS)
    if config.get("peft_type") in peft_prompts.KINDS:
        require_understood(folder, config)
        tensors = {name: np.array(archive[name]) for name in archive}
        return Adapter(*peft_prompts.decode(folder / TENSORS, config, tensors), config)
    if config.get("peft_type") == peft_mixture.KIND:
        experts = [load(where) for where in peft_mixture.folders(folder, config)]
        mixed = peft_mixture.decode(folder / TENSORS, config, peft_mixture.classifier(folder, archive), experts)
        return Adapter(*mixed, config, experts[0].family)
    if config.get("peft_type") == peft_shadow.KIND:
        tensors = {name: np.array(archive[name]) for name in archive}
        return Adapter(*peft_shadow.decode(folder, config, tensors), config)
    family, head = model_family(archive), _head(config, archive)
    whole = {f"{ROOT}{HEAD[site]}.{name}" for site, its in head.items() for name in its}
    places = {key: _place(key, family) for key in archive if key not in whole}
    layout = layout_of(folder, beside_head(config, archive), family, {theirs for _, theirs in places.values()})
    method, where = method_of(folder, config, layout), folder / TENSORS
    common = peft_shared.decode(where, config, layout, method, archive)
    arrays = _decode(where, layout, method, places, archive)
    if layout.kind == "LORA":
        peft_ranks.require_one_scaling(where, _by_module(arrays, "a", family), config)
    if peft_lengths.OTHERS in layout.fields:
        peft_lengths.require_equal(where, _by_module(arrays, "values", family), config)
    if peft_preserved.FIELD in layout.fields:
        peft_preserved.require_equal(where, {module_of(site, family): its for site, its in arrays.items()}, config)
    if layout.kind == "ADAPTION_PROMPT" and len(arrays) != method.adapted:  # type: ignore[attr-defined]
        raise FormatError(
            f"{where}: adapter_layers is {config['adapter_layers']}, but {len(arrays)} layers have a prompt."
        )
    for site, given in arrays.items():
        if why := layout.unlike(method, given):
            raise CapabilityError(f"{folder / CONFIG}: at {site} peft {why}, unlike {method!r}.")
    if why := peft_neighbours.apart(method, arrays):
        raise CapabilityError(f"{where}: {why}.")
    rest = peft_numbered.decode(where, layout, arrays, family, archive) if layout.numbered else {}
    if layout.kind == "FROD":
        rest = peft_kinds.decode(where, arrays, family, archive)
    arrays = {site: given | rest.get(site, {}) | common for site, given in arrays.items()}
    return Adapter(method, arrays, config, family, head)


def beside_head(config: Mapping[str, Any], archive: safetensors.Lazy) -> dict[str, Any]:
    """The fields that are not of a classifier's head, where there is one in the file."""
    return {name: value for name, value in config.items() if name != "modules_to_save" or not _head(config, archive)}


def _head(config: Mapping[str, Any], archive: safetensors.Lazy) -> dict[str, dict[str, np.ndarray]]:
    """What of a classifier's head is in the file."""
    if config.get("task_type") != FAMILIES[CLASSIFIER].task:
        return {}
    keys = {site: {name: f"{ROOT}{module}.{name}" for name in ("weight", "bias")} for site, module in HEAD.items()}
    return {
        site: {name: np.array(archive[key]) for name, key in its.items()}
        for site, its in keys.items()
        if all(key in archive for key in its.values())
    }


def _decode(
    where: Path, layout: Layout, method: Method, places: Mapping[str, tuple[str, str]], archive: safetensors.Lazy
) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each site that are tensors of its module."""
    names = {theirs: ours for ours, theirs in layout.tensors.items()}
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for key, (site, theirs) in places.items():
        if peft_shared.is_shared(layout, key) or peft_numbered.is_numbered(layout, key):
            continue
        if layout.kind == "FROD" and peft_kinds.is_common(key):
            continue
        array = np.array(archive[key])
        if site and theirs in layout.zeros and not array.any():
            continue
        if not site or theirs not in names:
            raise FormatError(f"{where}: the tensor {key!r} belongs to nothing that {layout.kind} has.")
        ours = names[theirs]
        try:
            array = layout.shaped(ours, array, method, there=False)
        except ValueError as error:
            raise FormatError(f"{where}: {key!r} of shape {array.shape} is no {ours} of {method!r}.") from error
        arrays.setdefault(site, {})[ours] = array.astype(np.int64) if ours in layout.stored else array
    for site, given in arrays.items():
        if missing := set(names.values()) - set(given):
            raise FormatError(f"{where}: {site} lacks {', '.join(sorted(missing))}.")
    if not arrays:
        raise FormatError(f"{where}: there is no tensor, expected an adapter's.")
    return arrays


def save(folder: str | os.PathLike[str], adapter: Adapter, base: str = "") -> None:
    """Write an adapter, the configuration last.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    adapter : Adapter
        Arrays of any library that NumPy reads.
    base : str
        What the configuration says of the model that it is for.

    Raises
    ------
    CapabilityError
        If peft's files have no place for the method.
    FormatError
        If a site has no module of that name.
    """
    if adapter.head:
        adapter = replace(adapter, family=CLASSIFIER)
    task = FAMILIES[adapter.family].task
    if adapter.head and not is_written(adapter):
        raise CapabilityError(f"peft's files have no place for {adapter.method!r} beside a classifier's head.")
    if type(adapter.method) in peft_prompts.KINDS.values():
        if why := peft_prompts.unlike(adapter.method, task):
            raise CapabilityError(f"peft {why}, so that its files have no place for {adapter.method!r}.")
        own, tensors = peft_prompts.encode(adapter.method, adapter.arrays, adapter.config)
    elif isinstance(adapter.method, XLoRA):
        if why := peft_mixture.unlike(adapter.method):
            raise CapabilityError(f"peft {why}, so that its files have no place for {adapter.method!r}.")
        own, tensors = peft_mixture.encode(Path(folder), adapter)
        for name, (method, arrays) in peft_mixture.apart(adapter).items():
            save(Path(folder) / name, Adapter(method, arrays, family=adapter.family), base)
    elif isinstance(adapter.method, Shadow):
        own, tensors = peft_shadow.encode(adapter)
    else:
        own, tensors = _encode(adapter)
    if adapter.head:
        own |= {"task_type": task, "modules_to_save": [*adapter.head]}
        tensors |= {
            f"{ROOT}{HEAD[site]}.{n}": np.asarray(a) for site, its in adapter.head.items() for n, a in its.items()
        }
    config = {"task_type": task, "inference_mode": True} | dict(adapter.config) | own
    if base:
        config["base_model_name_or_path"] = base
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save(folder / TENSORS, tensors, {"format": "pt"})
    atomic_write(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def is_written(adapter: Adapter) -> bool:
    """Whether peft's files hold the adapter's method, and peft puts it on matrices as the model's are stored."""
    layout, task = written(adapter.method), FAMILIES[adapter.family].task
    if adapter.head and "classifier" not in adapter.head:  # peft asks for one in every file of this task
        return False
    if isinstance(adapter.method, XLoRA | Shadow):
        return not (isinstance(adapter.method, XLoRA) and peft_mixture.unlike(adapter.method))
    if layout is None:
        return (
            not adapter.head
            and type(adapter.method) in peft_prompts.KINDS.values()
            and not peft_prompts.unlike(adapter.method, task)
        )
    if layout.misread or any(layout.unlike(adapter.method, arrays) for arrays in adapter.arrays.values()):
        return False
    if peft_shared.apart(layout, adapter.arrays) or _ungrouped(adapter):
        return False
    at_matrices = adapter.method.operation.endswith(".linear")
    return layout.input_first or not (at_matrices and FAMILIES[adapter.family].input_first)


def model_family(tensors: Iterable[str]) -> str:
    """Of the model that tensors of an adapter are for; llama where they name no block that is known."""
    return next(filter(None, (family_of(name.removeprefix(ROOT)) for name in tensors)), "llama")


def _encode(adapter: Adapter) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and tensors of a method that stands at matrices."""
    layout = written(adapter.method)
    if layout is None:
        why = next(
            (f", of which peft {DECOMPOSED[kind]}" for kind in adapter.method.peft if kind in DECOMPOSED), " as it is"
        )
        raise CapabilityError(f"peft's files have no place for {adapter.method!r}{why}{_EXTRACT}.")
    if layout.misread:
        raise CapabilityError(f"peft {layout.misread}, so that nothing is written for {adapter.method!r}{_EXTRACT}.")
    tensors, modules = peft_shared.encode(layout, adapter.arrays), []
    for site, arrays in adapter.arrays.items():
        module = module_of(site, adapter.family)
        modules.append(module)
        if why := layout.unlike(adapter.method, arrays):
            raise CapabilityError(f"{site}: peft {why}, so that its files have no place for {adapter.method!r}.")
        for ours, theirs in layout.tensors.items():
            array = layout.shaped(ours, np.asarray(arrays[ours]), adapter.method, there=True)
            array = array.astype(layout.stored.get(ours, array.dtype), copy=False)
            tensors[f"{ROOT}{module}.{theirs}"] = array
        for theirs, shape in layout.zeros.items():
            tensors[f"{ROOT}{module}.{theirs}"] = np.zeros(shape(arrays), array.dtype)
    if layout.numbered:
        tensors |= peft_numbered.encode(layout, adapter.arrays, adapter.family)
    fields = {theirs: getattr(adapter.method, ours) for theirs, ours in layout.fields.items()}
    flags = {n: [] if n.endswith("_modules") else v for n, v in layout.theirs.items()} | dict(layout.said)
    flags |= {"peft_version": ".".join(map(str, layout.since))} if layout.since else {}
    flags |= {"fan_in_fan_out": True} if layout.input_first and FAMILIES[adapter.family].input_first else {}
    fields |= flags
    if layout.kind == "ADAPTION_PROMPT":
        fields["adapter_layers"] = len(adapter.arrays)
    if adapter.method.neighbours():
        if why := _ungrouped(adapter):
            raise CapabilityError(f"{why}, so that peft's files have no place for it.")
        fields |= peft_neighbours.fields(adapter.arrays, adapter.family)
    if layout.kind == "LORA":
        fields |= peft_ranks.patterns(_by_module(adapter.arrays, "a", adapter.family), fields)
    if peft_lengths.OTHERS in layout.fields:
        fields |= peft_lengths.pattern(_by_module(adapter.arrays, "values", adapter.family), fields)
    if peft_preserved.FIELD in layout.fields:
        fields |= peft_preserved.fields(dict(zip(modules, adapter.arrays.values())), adapter.method.preserved)  # type: ignore[attr-defined]
    return {"peft_type": layout.kind, "target_modules": modules} | fields, tensors


def _ungrouped(adapter: Adapter) -> str:
    """Why peft would have other arrays in common, or name other modules; "" where it would not."""
    if not adapter.method.neighbours():
        return ""
    named = peft_neighbours.unnamed(adapter.arrays, adapter.family)
    return named or peft_neighbours.apart(adapter.method, adapter.arrays)


def _place(key: str, family: str) -> tuple[str, str]:
    """A tensor's site and its name there; no site where it is at none."""
    parts = key.removeprefix(ROOT).split(".")
    splits = (
        (".".join(parts[:i]), ".".join(parts[i:])) for i in reversed(range(1, len(parts))) if key.startswith(ROOT)
    )
    return next(((site, name) for module, name in splits if (site := FAMILIES[family].site(module))), ("", key))


def _by_module(arrays: Arrays, name: str, family: str) -> dict[str, np.ndarray]:
    """An array of each site, by peft's name of the module."""
    return {module_of(site, family): np.asarray(its[name]) for site, its in arrays.items()}


def module_of(site: str, family: str) -> str:
    """``model.layers.0.self_attn.q_proj`` for ``layers.0.attn.q``."""
    if (module := FAMILIES[family].adapted(site)) is None:
        raise FormatError(f"peft has no module for the site {site!r}.")
    return module


def tensor_of(site: str, family: str) -> str:
    """The model's tensor that is adapted at a site: ``model.layers.0.self_attn.q_proj.weight``."""
    module_of(site, family)
    return f"{FAMILIES[family].module(site)}.weight"
