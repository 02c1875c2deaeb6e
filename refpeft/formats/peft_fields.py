"""The fields of peft's ``adapter_config.json``: which layout and method they are of, and what of them is not understood."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refpeft.errors import AttributeValueError, CapabilityError, FormatError
from refpeft.files import read_json
from refpeft.formats import peft_lengths, peft_preserved, peft_prompts, peft_ranks
from refpeft.formats.names import FAMILIES
from refpeft.formats.peft_layouts import LAYOUTS, Layout, read
from refpeft.methods import Method

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

INERT = (
    "auto_mapping base_model_name_or_path beta1 beta2 boft_dropout corda_config deft_dropout deltaT "
    "ensure_weight_tying eps eva_config exclude_modules frod_dropout generator_seed inference_mode init_ia3_weights "
    "init_logits_std init_lora_weights init_scale init_theta_d_bound init_v_bound init_vector_bank_bound init_weights "
    "layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config megatron_core mini_r module_dropout "
    "num_cayley_neumann_terms orth_reg_weight peft_type peft_version progressbar projection_prng_key projection_seed "
    "pvera_dropout qalora_group_size randlora_dropout random_seed rank_dropout revision runtime_offload_base_weight "
    "sparse target_modules target_r task_type tfinal tinit tinylora_dropout unilora_dropout use_effective_conv2d "
    "vblora_dropout vera_dropout very_sparse"
)
"""Fields that say where an adapter comes from, or how it was started and regularised: nothing of what it computes."""

CONVERTED = (
    "changed before training; what save_pretrained writes with path_initial_model_for_weight_conversion is for the weight "
    "as it was, and is read"
)
DECOMPOSED = {
    "ADAMSS": "keeps no clusters of rows, which scikit-learn finds again in singular vectors from a random projection",
    "PSOFT": "keeps neither A nor B, which are of the weight's singular vectors, whose signs differ between libraries",
}
"""Types whose files do not say what they compute, and why."""

CHANGING = dict.fromkeys(("pissa", "olora", "corda", "lora_ga"), CONVERTED) | {
    "loftq": "quantised, which is not in the file"
}
"""Starts that change the base weight, by how ``init_lora_weights`` begins, and what is to be said of the weight."""


def configuration(folder: Path) -> dict[str, Any]:
    """The fields of an adapter whose two files are there.

    Raises
    ------
    FormatError
    """
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise FormatError(f"{folder} has no {name}, expected an adapter of peft.")
    config = read_json(folder / CONFIG)
    if not isinstance(config.get("peft_type"), str | None):
        raise FormatError(f"{folder / CONFIG}: peft_type must be a name, but {config['peft_type']!r} came.")
    return config


def layout_of(folder: Path, config: dict[str, Any], family: str, tensors: set[str]) -> Layout:
    """How the adapter is written; whatever would make it compute something else is refused."""
    layout = read(config, tensors)
    if why := DECOMPOSED.get(str(config.get("peft_type"))):
        raise CapabilityError(
            f"{folder / CONFIG}: of {config['peft_type']} peft {why}, so that it is not read; of a model that it is "
            f"merged into, 'refpeft extract --tuned' makes LoRA."
        )
    kinds = sorted({layout.kind for layout in LAYOUTS} | set(peft_prompts.KINDS) | {"XLORA", "SHADOW"})
    if config.get("peft_type") not in kinds:
        raise CapabilityError(
            f"{folder / CONFIG}: peft_type is {config.get('peft_type')!r}, but {', '.join(kinds)} are read."
        )
    if layout is None:
        deciding = sorted({n for other in LAYOUTS if other.kind == config["peft_type"] for n in other.theirs})
        came = ", ".join(f"{n} {json.dumps(config.get(n))}" for n in [*deciding, "peft_version"])
        raise CapabilityError(f"{folder / CONFIG}: {config['peft_type']} with {came} is not read.")
    require_understood(folder, config, family)
    if layout.kind == "LORA":
        require_unchanged(folder, config)
    return layout


def not_understood(config: Mapping[str, Any], family: str = "llama") -> dict[str, Any]:
    """Fields of a method that is read which would change what it computes in a way that is not known here."""
    layout = read(config)
    known = {
        *INERT.split(),
        *(peft_prompts.FIELDS.split() if layout is None else (*layout.fields, *layout.theirs, *layout.said)),
    }
    if layout and layout.kind == "LORA":
        known |= set(peft_ranks.FIELDS)
    if layout and peft_lengths.OTHERS in layout.fields:
        known.add(peft_lengths.FIELD)
    if layout and peft_preserved.FIELD in layout.fields:
        known.add(peft_preserved.PATTERN)
    if FAMILIES[family].input_first:
        known.add("fan_in_fan_out")
    return {n: v for n, v in config.items() if n not in known and v and (n, v) != ("bias", "none")}


def require_understood(folder: Path, config: dict[str, Any], family: str = "llama") -> None:
    """Refuse a field that changes the computation in a way not known here."""
    for name, value in not_understood(config, family).items():
        raise CapabilityError(f"{folder / CONFIG}: {name} is {json.dumps(value)}, which is not understood here.")


def require_unchanged(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what was trained over another weight than the original."""
    start = config.get("init_lora_weights")
    for name, said in CHANGING.items():
        if str(start).lower().startswith(name):
            raise CapabilityError(
                f"{folder / CONFIG}: init_lora_weights is {json.dumps(start)}, so that the adapter is for a weight that peft "
                f"{said}."
            )


def method_of(folder: Path, config: dict[str, Any], layout: Layout) -> Method:
    """The method that the fields are of."""
    try:
        config = config | {n: layout.absent[n](config) for n in layout.absent if config.get(n) is None}
        return layout.method(**{ours: config[theirs] for theirs, ours in layout.fields.items()}, **layout.ours)
    except KeyError as error:
        raise FormatError(f"{folder / CONFIG}: {layout.kind} needs {error}, which is missing.") from error
    except AttributeValueError as error:
        raise FormatError(f"{folder / CONFIG}: {error}") from error
