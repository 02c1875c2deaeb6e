"""Ranks of their own for some modules, in peft's files: ``rank_pattern``, and ``alpha_pattern`` beside it.

They are understood where they leave the scaling as it is for the others, as EVA's do: then the method is one, and a module's
rank is what its tensors say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from refpeft.errors import CapabilityError, FormatError

FIELDS = ("rank_pattern", "alpha_pattern")


def patterns(modules: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The fields, for those of the modules whose A has another rank than the configuration says.

    Parameters
    ----------
    modules : mapping of str to (r, i) array
        A by peft's name of the module.
    config : mapping
        With ``r``, ``lora_alpha`` and ``use_rslora``.
    """
    other = {name: len(a) for name, a in modules.items() if len(a) != config["r"]}
    alphas = {
        name: config["lora_alpha"] * root(rank, config) / root(config["r"], config) for name, rank in other.items()
    }
    return {"rank_pattern": other, "alpha_pattern": alphas}


def require_one_scaling(where: Any, modules: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """Refuse modules whose tensors are not of the rank that the fields give them, or that are scaled otherwise than the others.

    Raises
    ------
    FormatError, CapabilityError
    """
    for field in FIELDS:
        require_numbers(where, field, config.get(field) or {})
    scaling = config["lora_alpha"] / root(config["r"], config)
    for name, a in modules.items():
        rank, alpha = (own(config.get(f), name, config[of]) for f, of in zip(FIELDS, ("r", "lora_alpha")))
        if len(a) != rank:
            raise FormatError(f"{where}: {name} has rank {len(a)}, but r and rank_pattern say {rank}.")
        if not math.isclose(alpha / root(rank, config), scaling):
            raise CapabilityError(
                f"{where}: rank_pattern and alpha_pattern scale {name} by {alpha / root(rank, config):g} and others by "
                f"{scaling:g}, which is not understood here."
            )


def root(rank: int, config: Mapping[str, Any]) -> float:
    """What alpha is divided by."""
    return math.sqrt(rank) if config.get("use_rslora") else rank


def own(pattern: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """A module's value in a pattern, whose first key that is the end of its name counts, as a regular expression."""
    return next((v for key, v in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)


def require_numbers(where: Any, field: str, pattern: Any) -> None:
    """Refuse what is not an object of regular expressions and positive numbers."""
    pairs: Any = pattern.items() if isinstance(pattern, dict) else [("", None)]
    for key, value in pairs:
        try:
            re.compile(key)
        except re.error:
            value = None
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise FormatError(f"{where}: {field} must give modules positive numbers, but is {pattern!r}.")
