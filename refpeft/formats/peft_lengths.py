"""Lengths of their own for some modules, in peft's files: ``n_frequency_pattern`` beside ``n_frequency``.

The tensors say them too, so that there is nothing to read but whether both agree. WaveFT's ``proportional_parameters`` deals
lengths out by the modules' sizes; what it gave is written as a pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refpeft.errors import FormatError
from refpeft.formats import peft_ranks

FIELD, OTHERS = "n_frequency_pattern", "n_frequency"


def pattern(modules: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The field, for those of the modules that have another length than the configuration says."""
    return {FIELD: {name: len(values) for name, values in modules.items() if len(values) != config[OTHERS]}}


def require_equal(where: Any, modules: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """Refuse modules whose tensors have another length than the fields give them.

    Raises
    ------
    FormatError
    """
    if config.get("proportional_parameters"):
        return
    peft_ranks.require_numbers(where, FIELD, config.get(FIELD) or {})
    for name, values in modules.items():
        said = peft_ranks.own(config.get(FIELD), name, config[OTHERS])
        if values.shape != (said,):
            raise FormatError(f"{where}: {name} has shape {values.shape}, but {OTHERS} and {FIELD} say {said}.")
