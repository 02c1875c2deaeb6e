"""Shadow in peft's files: each block's own tensors, and those of the small model beside it, named with ``default``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refpeft.errors import AttributeValueError, CapabilityError, FormatError
from refpeft.formats.adapter import Adapter
from refpeft.formats.names import FAMILIES
from refpeft.formats.peft_fields import CONFIG, INERT
from refpeft.methods import Arrays
from refpeft.methods.shadow import BACKBONE, INJECT, UPDATE, Shadow

KIND = "SHADOW"
_NAMES = FAMILIES["llama"]
_BLOCK, _BESIDE = "base_model.model.", "base_model.shadow_backbone.default."
_NETWORKS = {"candidate": "shadow_update_transform.default", "gate": "shadow_update_gate.default"}
TENSORS = {
    INJECT: {"down": "shadow_down.default.weight", "up": "shadow_up.default.weight"},
    UPDATE: {
        f"{net}_{part}{end and '_bias'}": f"{theirs}.{number}.{end or 'weight'}"
        for net, theirs in _NETWORKS.items()
        for part, number in (("down", 0), ("up", 2))
        for end in ("", "bias")
    },
}
ONLY = {"shadow_model": "mirror", "share_embeddings": True}
"""Fields that are read with this value alone, which is peft's own."""
_NUMBERS = {"rank": "r", "alpha": "shadow_alpha", "auxiliary": "auxiliary_loss_weight", "dropout": "shadow_dropout"}
"""Fields that are numbers, by our name; their defaults are ours."""
_READ = f"{' '.join(_NUMBERS.values())} shadow_num_hidden_layers update_hidden_size"


def decode(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> tuple[Shadow, Arrays]:
    """The method and its arrays by site.

    Raises
    ------
    FormatError
        If a tensor is one too many or too few, or a field is not a number.
    CapabilityError
        If a field changes what is computed in a way that is not known here.
    """
    known = {*INERT.split(), *_READ.split()}
    for name, value in config.items():
        if value != ONLY[name] if name in ONLY else name not in known and value:
            raise CapabilityError(f"{folder / CONFIG}: {name} is {json.dumps(value)}, which is not understood here.")
    try:
        depth, width = (
            config.get(name) or other for name, other in (("shadow_num_hidden_layers", 1), ("update_hidden_size", 0))
        )
        own = {ours: config[theirs] for ours, theirs in _NUMBERS.items() if theirs in config}
        method = Shadow(width=width, depth=depth, **own)
    except AttributeValueError as error:
        raise FormatError(f"{folder / CONFIG}: {error}") from error
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for key, array in tensors.items():
        site, name = _place(key)
        if not site:
            raise FormatError(f"{folder}: the tensor {key!r} belongs to nothing that {KIND} has.")
        arrays.setdefault(site, {})[name] = np.asarray(array)
    for site, names in ((site, TENSORS[at]) for site in arrays if (at := site.split(".", 2)[-1]) in TENSORS):
        if missing := names.keys() - arrays[site].keys():
            raise FormatError(f"{folder}: {site} lacks {', '.join(sorted(missing))}.")
    if not arrays:
        raise FormatError(f"{folder}: there is no tensor, expected an adapter's.")
    return method, arrays


def encode(adapter: Adapter) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and tensors."""
    method, tensors = adapter.method, {}
    blocks: dict[str, None] = {}
    for site, arrays in adapter.arrays.items():
        at = site.split(".", 2)[-1]
        for name, array in arrays.items():
            if at in TENSORS:
                block = _NAMES.module(f"{site.removesuffix(at)}attn.q").removesuffix(".self_attn.q_proj")  # type: ignore[union-attr]
                blocks[block] = None
                tensors[f"{_BLOCK}{block}.{TENSORS[at][name]}"] = np.asarray(array)
            else:
                module = _NAMES.module(site.removeprefix(f"{BACKBONE}."))
                tensors[f"{_BESIDE}{_NAMES.headless(module)}.{name}"] = np.asarray(array)  # type: ignore[arg-type]
    assert isinstance(method, Shadow)
    fields: dict[str, Any] = {theirs: getattr(method, ours) for ours, theirs in _NUMBERS.items()}
    fields |= {"update_hidden_size": method.width or None, "shadow_num_hidden_layers": method.depth}
    fields |= {"peft_type": KIND, "target_modules": [*blocks]}
    return ONLY | fields, tensors


def _place(key: str) -> tuple[str, str]:
    """A tensor's site and its array there; no site where it is at none."""
    if key.startswith(_BESIDE):
        module, _, name = key.removeprefix(_BESIDE).rpartition(".")
        site = _NAMES.site(module)
        return (f"{BACKBONE}.{site}", name) if site and name in ("weight", "bias") else ("", "")
    found = re.fullmatch(rf"{re.escape(_BLOCK)}model\.layers\.(\d+)\.(shadow_.+)", key)
    for at, names in TENSORS.items() if found else ():
        for ours, theirs in names.items():
            if found and found[2] == theirs:
                return f"layers.{found[1]}.{at}", ours
    return "", ""
