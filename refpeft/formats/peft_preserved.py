"""How many singular triplets of each module stay frozen, in peft's files of OSF: ``effective_rank`` and ``rank_pattern``.

The tensors say it too, so that there is nothing to read but whether both agree. An integer is a number of triplets, any other
number a share of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from refpeft.errors import FormatError
from refpeft.formats import peft_ranks
from refpeft.ops import osf

FIELD, PATTERN = "effective_rank", "rank_pattern"


def fields(modules: Mapping[str, Mapping[str, np.ndarray]], preserved: float) -> dict[str, Any]:
    """Both, the pattern for those modules that have another number than the share, or number, gives them.

    Parameters
    ----------
    modules : mapping of str to mapping of str to array
        ``u`` (o, k) and ``v`` (k, i) by peft's name of the module.
    preserved : float
        As `refpeft.methods.OSF` has it.
    """
    other = {}
    for name, its in modules.items():
        o, k, i = *its["u"].shape, its["v"].shape[1]
        if (frozen := min(o, i) - k) != osf.frozen(o, i, preserved=preserved):
            other[f"{re.escape(name)}$"] = frozen
    return {FIELD: int(preserved) if preserved >= 1 else preserved, PATTERN: other}


def require_equal(where: Any, modules: Mapping[str, Mapping[str, np.ndarray]], config: Mapping[str, Any]) -> None:
    """Refuse modules whose tensors leave another number frozen than the fields.

    Raises
    ------
    FormatError
    """
    patterns = config.get(PATTERN) or {}
    peft_ranks.require_numbers(where, PATTERN, patterns)
    for name, its in modules.items():
        u, s, v = (its[n].shape for n in "usv")
        if (len(u), len(s), len(v)) != (2, 1, 2) or not u[1] == s[0] == v[0]:
            raise FormatError(f"{where}: {name} has U_low {u}, S_low {s} and V_low {v}, which is no decomposition.")
        value = next((value for key, value in patterns.items() if re.search(key, name)), config.get(FIELD))
        k, least = s[0], min(u[0], v[1])
        if least - k != (said := _resolved(value, least)):
            raise FormatError(
                f"{where}: {name} trains {k} of {least} triplets, but {FIELD} and {PATTERN} freeze {said}."
            )


def _resolved(value: Any, least: int) -> int:
    """As peft takes it, where 1.0 is all of them."""
    if value is None:
        return least // 2
    return int(least * value) if isinstance(value, float) and value <= 1 else min(int(value), least)
