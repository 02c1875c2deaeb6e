"""Adapters as Hugging Face peft saves them: ``adapter_config.json`` beside ``adapter_model.safetensors``.

LoRA, rank-stabilised LoRA, DoRA and LoHa on the matrices of a decoder of Llama's type. What is read is understood or refused: a
tensor that belongs nowhere, or a field that changes the computation in a way not known here, is an error. Fields that change
nothing are kept, and written again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refpeft.errors import CapabilityError, FormatError
from refpeft.files import atomic_write, read_json
from refpeft.formats import safetensors
from refpeft.methods import Method
from refpeft.methods.dora import DoRA
from refpeft.methods.loha import LoHa
from refpeft.methods.lora import LoRA, RsLoRA

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MODULES = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
"""A site within a layer, and the module that Hugging Face has there."""

INERT = (
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config exclude_modules inference_mode "
    "init_lora_weights init_weights layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config "
    "megatron_core module_dropout peft_type peft_version qalora_group_size rank_dropout revision target_modules "
    "task_type use_effective_conv2d"
)
"""Fields that say where an adapter comes from, or how it was started and regularised: nothing of what it computes."""

_KEY = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(self_attn\.\w+_proj|mlp\.\w+_proj)\.(.+)")


class Layout(NamedTuple):
    """How one method is written: its fields in the configuration, and the tensors of a module by refpeft's names."""

    kind: str
    fields: Callable[[Any], dict[str, Any]]
    tensors: dict[str, str]


_FACTORS = {"a": "lora_A.weight", "b": "lora_B.weight"}


def _lora(**flags):
    def fields(method):
        numbers = {"r": method.rank, "lora_alpha": method.alpha, "bias": "none"}
        return numbers | {"use_rslora": False, "use_dora": False} | flags

    return fields


LAYOUTS: dict[type[Method], Layout] = {
    LoRA: Layout("LORA", _lora(), _FACTORS),
    RsLoRA: Layout("LORA", _lora(use_rslora=True), _FACTORS),
    DoRA: Layout("LORA", _lora(use_dora=True), _FACTORS | {"magnitude": "lora_magnitude_vector"}),
    LoHa: Layout(
        "LOHA", lambda m: {"r": m.rank, "alpha": m.alpha}, {n: f"hada_{n}" for n in ("w1_a", "w1_b", "w2_a", "w2_b")}
    ),
}


@dataclass(frozen=True)
class Adapter:
    """An adapter in a file.

    Attributes
    ----------
    method : Method
    arrays : dict of site to dict of str to array
        As `refpeft.models.Llama.attach` takes them.
    config : dict
        All fields of the file that it was read from.
    """

    method: Method
    arrays: Mapping[str, Mapping[str, np.ndarray]]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pattern(self) -> str:
        """Its sites, between commas."""
        return ",".join(self.arrays)


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
    config = _config(folder)
    method = _method(folder, config)
    names = {theirs: ours for ours, theirs in LAYOUTS[type(method)].tensors.items()}
    sites = {theirs: ours for ours, theirs in MODULES.items()}
    arrays: dict[str, dict[str, np.ndarray]] = {}
    archive = safetensors.scan(folder / TENSORS)
    for key in archive:
        found = _KEY.fullmatch(key)
        if not found or found[2] not in sites or found[3] not in names:
            raise FormatError(
                f"{folder / TENSORS}: the tensor {key!r} belongs to nothing that {config['peft_type']} has."
            )
        arrays.setdefault(f"layers.{found[1]}.{sites[found[2]]}", {})[names[found[3]]] = np.array(archive[key])
    for site, given in arrays.items():
        if missing := set(names.values()) - set(given):
            raise FormatError(f"{folder / TENSORS}: {site} lacks {', '.join(sorted(missing))}.")
    if not arrays:
        raise FormatError(f"{folder / TENSORS}: there is no tensor, expected an adapter's.")
    return Adapter(method, arrays, config)


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
        If the method is none of `LAYOUTS`.
    FormatError
        If a site has no module of that name.
    """
    layout = require_layout(adapter.method)
    tensors, modules = {}, []
    for site, arrays in adapter.arrays.items():
        module = module_of(site)
        modules.append(f"model.{module}")
        for ours, theirs in layout.tensors.items():
            tensors[f"base_model.model.model.{module}.{theirs}"] = np.asarray(arrays[ours])
    config = {"peft_type": layout.kind, "task_type": "CAUSAL_LM", "inference_mode": True}
    config |= dict(adapter.config) | layout.fields(adapter.method) | {"target_modules": modules}
    if base:
        config["base_model_name_or_path"] = base
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save(folder / TENSORS, tensors, {"format": "pt"})
    atomic_write(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def require_layout(method: Method) -> Layout:
    """How the method is written.

    Raises
    ------
    CapabilityError
        If it is none of `LAYOUTS`.
    """
    layout = LAYOUTS.get(type(method))
    if layout is None:
        known = ", ".join(cls.__name__ for cls in LAYOUTS)
        raise CapabilityError(f"peft's files are written for {known}, but {type(method).__name__} came.")
    return layout


def _config(folder: Path) -> dict[str, Any]:
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise FormatError(f"{folder} has no {name}, expected an adapter of peft.")
    return read_json(folder / CONFIG)


def _method(folder: Path, config: dict[str, Any]) -> Method:
    """The method of a configuration; whatever would make it compute something else is refused."""
    cls: type[LoRA] | type[DoRA] | type[LoHa]
    kind = config.get("peft_type")
    if kind == "LORA":
        cls = DoRA if config.get("use_dora") else RsLoRA if config.get("use_rslora") else LoRA
        understood = {"r", "lora_alpha", "use_dora", "use_rslora"}
        if config.get("use_dora") and config.get("use_rslora"):
            raise CapabilityError(f"{folder / CONFIG}: use_dora and use_rslora together are not read.")
    elif kind == "LOHA":
        cls, understood = LoHa, {"r", "alpha"}
    else:
        kinds = sorted({layout.kind for layout in LAYOUTS.values()})
        raise CapabilityError(f"{folder / CONFIG}: peft_type is {kind!r}, but {' and '.join(kinds)} are read.")
    for name, value in config.items():
        if name not in understood and name not in INERT.split() and value and (name, value) != ("bias", "none"):
            raise CapabilityError(f"{folder / CONFIG}: {name} is {json.dumps(value)}, which is not understood here.")
    try:
        return cls(rank=config["r"], alpha=float(config["alpha" if kind == "LOHA" else "lora_alpha"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{folder / CONFIG}: rank and alpha are needed as numbers: {error}.") from error


def module_of(site: str) -> str:
    """``layers.0.self_attn.q_proj`` for ``layers.0.attn.q``."""
    layer, _, place = site.partition(".")[2].partition(".")
    if not site.startswith("layers.") or not layer.isdigit() or place not in MODULES:
        raise FormatError(f"peft has no module for the site {site!r}.")
    return f"layers.{layer}.{MODULES[place]}"
