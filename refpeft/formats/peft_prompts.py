"""Prompts and prefixes in peft's files: one tensor for the model, ``prompt_embeddings``; two beside it where tasks scale it.

Where a perceptron or an LSTM was trained, peft keeps what it gave, and so does refpeft: a prompt, or a flat prefix. Of CPT peft
keeps the tokens where they were moved to, so that whoever goes on begins new balls there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from refpeft.errors import FormatError
from refpeft.methods import Method
from refpeft.methods.prefix import Cartridge, PTuningV2
from refpeft.methods.prompt import CPT, MultitaskPromptTuning, PromptTuning
from refpeft.ops import prefix

TENSOR = "prompt_embeddings"
_RADIUS = "opt_projection_format_epsilon"
TASKS = {"u": "prefix_task_cols", "v": "prefix_task_rows"}
"""Our names of arrays (k, p, r) and (k, r, d) of all tasks, and peft's."""

KINDS: dict[str, type[Method]] = {
    "PROMPT_TUNING": PromptTuning,
    "P_TUNING": PromptTuning,
    "MULTITASK_PROMPT_TUNING": MultitaskPromptTuning,
    "CPT": CPT,
    "PREFIX_TUNING": PTuningV2,
    "CARTRIDGE": Cartridge,
}
FIELDS = (
    "num_virtual_tokens token_dim num_layers num_attention_heads num_transformer_submodules prefix_projection "
    "prompt_tuning_init prompt_tuning_init_text prompt_tuning_init_state_dict_path tokenizer_name_or_path tokenizer_kwargs "
    "encoder_hidden_size encoder_num_layers encoder_dropout encoder_reparameterization_type modules_to_save num_frozen_tokens "
    "prompt_tuning_init_task num_tasks num_ranks cpt_token_ids cpt_mask cpt_tokens_type_mask opt_weighted_loss_type "
    "opt_loss_decay_factor opt_projection_epsilon opt_projection_format_epsilon"
)
"""What says where they come from, or is known of their shape."""

Arrays = Mapping[str, Mapping[str, np.ndarray]]


CONTEXT = "cpt_token_ids"
"""Of CPT: peft takes the number of tokens from it, and uses the ids themselves where some of them are labels."""


def unlike(method: Method, task: str) -> str:
    """Why peft would not have a method in a model that does something; "" where it would."""
    return "has CPT in causal language models only" if isinstance(method, CPT) and task != "CAUSAL_LM" else ""


def encode(method: Method, arrays: Arrays, before: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and tensors; ``before`` are the fields of the file that they were read from."""
    others: dict[str, np.ndarray] = {}
    if isinstance(method, CPT):
        (given,) = arrays.values()
        flat = np.asarray(given["tokens"]) + np.asarray(given["delta"])
        ids = before.get(CONTEXT) or [0] * len(flat)
        shape = {"peft_type": "CPT", "token_dim": flat.shape[1], CONTEXT: ids, _RADIUS: method.epsilon}
    elif isinstance(method, PromptTuning | MultitaskPromptTuning):
        (given,) = arrays.values()
        flat = np.asarray(given["prompt"])
        shape = {"peft_type": "PROMPT_TUNING", "token_dim": flat.shape[1]}
        if isinstance(method, MultitaskPromptTuning):
            shape |= {"peft_type": "MULTITASK_PROMPT_TUNING", "num_tasks": method.tasks, "num_ranks": method.rank}
            others = {theirs: np.asarray(given[ours]) for ours, theirs in TASKS.items()}
    else:
        keys, values = (np.stack([np.asarray(a[n]) for a in arrays.values()]) for n in ("prefix_k", "prefix_v"))
        layers, groups, _, size = keys.shape
        flat = prefix.together(keys, values)
        shape = {"token_dim": groups * size, "num_layers": layers, "num_attention_heads": groups}
        if isinstance(method, Cartridge):
            shape |= {"peft_type": "CARTRIDGE", "num_frozen_tokens": method.frozen}
        else:
            shape |= {"peft_type": "PREFIX_TUNING", "prefix_projection": False}
    return shape | {"num_virtual_tokens": len(flat), "num_transformer_submodules": 1}, {TENSOR: flat} | others


def decode(where: Any, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> tuple[Method, Arrays]:
    """The method and its arrays by site.

    Raises
    ------
    FormatError
        If a tensor is missing or one too many, or has another shape than the fields say.
    """
    kind = KINDS[config["peft_type"]]
    names = (TENSOR, *TASKS.values()) if kind is MultitaskPromptTuning else (TENSOR,)
    if set(tensors) != set(names):
        wanted = f"tensors {', '.join(names)} are" if len(names) > 1 else f"tensor {TENSOR} is"
        raise FormatError(f"{where}: the {wanted} expected, alone, but {', '.join(tensors) or 'none'} came.")
    flat = np.asarray(tensors[TENSOR])
    if kind in (PromptTuning, MultitaskPromptTuning, CPT):
        if flat.ndim != 2 or not len(flat):
            raise FormatError(f"{where}: {TENSOR} must be (tokens, width), but has shape {flat.shape}.")
        if kind is PromptTuning:
            return PromptTuning(tokens=len(flat)), {"prompt": {"prompt": flat}}
        if kind is CPT:
            return _of_context(where, config, flat)
        return _of_tasks(where, config, flat, tensors)
    fields = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")
    tokens, layers, groups, width = (_positive(where, config, name) for name in fields)
    if flat.shape != (tokens, 2 * layers * width) or width % groups:
        numbers = ", ".join(f"{name} {config[name]}" for name in fields)
        raise FormatError(f"{where}: {TENSOR} of shape {flat.shape} is not a prefix of {numbers}.")
    keys, values = prefix.cut(flat, l=layers, g=groups, d=width // groups)
    arrays = {f"layers.{i}.attention": {"prefix_k": keys[i], "prefix_v": values[i]} for i in range(layers)}
    if kind is PTuningV2:
        return PTuningV2(tokens=tokens, size=width // groups), arrays
    frozen = config.get("num_frozen_tokens", 1)
    if type(frozen) is not int or not 0 <= frozen <= tokens:
        raise FormatError(f"{where}: num_frozen_tokens must be from 0 to {tokens}, but {frozen!r} came.")
    return Cartridge(tokens=tokens, size=width // groups, frozen=frozen), arrays


def _of_context(where: Any, config: Mapping[str, Any], flat: np.ndarray) -> tuple[Method, Arrays]:
    """Tokens that have not moved."""
    if len(config.get(CONTEXT) or [0]) != len(flat):
        raise FormatError(f"{where}: {TENSOR} has {len(flat)} tokens, but {CONTEXT} is {config.get(CONTEXT)!r}.")
    radius = config.get(_RADIUS, CPT.epsilon)
    if type(radius) not in (int, float) or not 0 < radius < math.inf:
        raise FormatError(f"{where}: {_RADIUS} must be a positive number, but {radius!r} came.")
    return CPT(tokens=len(flat), epsilon=radius), {"prompt": {"tokens": flat, "delta": np.zeros_like(flat)}}


def _of_tasks(
    where: Any, config: Mapping[str, Any], flat: np.ndarray, tensors: Mapping[str, np.ndarray]
) -> tuple[Method, Arrays]:
    """A prompt and the factors that scale it, of every task."""
    tasks, rank = (_positive(where, config, name) for name in ("num_tasks", "num_ranks"))
    (tokens, width), (u, v) = flat.shape, (np.asarray(tensors[name]) for name in TASKS.values())
    if (u.shape, v.shape) != ((tasks, tokens, rank), (tasks, rank, width)):
        came = f"num_tasks {tasks}, num_ranks {rank} and {TENSOR} of shape {flat.shape}"
        raise FormatError(
            f"{where}: {' and '.join(TASKS.values())} of shapes {u.shape} and {v.shape} are not of {came}."
        )
    method = MultitaskPromptTuning(tokens=tokens, tasks=tasks, rank=rank)
    return method, {"prompt": {"prompt": flat, "u": u, "v": v}}


def _positive(where: Any, config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise FormatError(f"{where}: {name} must be a positive integer, but {value!r} came.")
    return value
