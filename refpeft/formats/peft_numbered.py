"""Vectors that peft keeps for the whole model and numbers by the modules that they are of: ``base_model.tinylora_v.0``.

They are counted in the model's order, of those modules that are adapted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from refpeft.errors import FormatError
from refpeft.formats.names import FAMILIES
from refpeft.formats.peft_layouts import Layout
from refpeft.formats.safetensors import Lazy
from refpeft.methods import Arrays


def is_numbered(layout: Layout, key: str) -> bool:
    """Whether a tensor is one of them."""
    return any(re.fullmatch(rf"base_model\.{theirs}\.\d+", key) for theirs in layout.numbered.values())


def decode(where: Any, layout: Layout, sites: Iterable[str], family: str, archive: Lazy) -> dict[str, dict[str, Any]]:
    """Those of each site.

    Raises
    ------
    FormatError
        If there are more, or fewer, than sites.
    """
    keys = keys_of(layout, sites, family)
    came = {key for key in archive if is_numbered(layout, key)}
    if came != set(keys):
        raise FormatError(f"{where}: {', '.join(keys)} are expected, but {', '.join(sorted(came)) or 'none'} came.")
    found: dict[str, dict[str, Any]] = {}
    for key, (site, ours) in keys.items():
        found.setdefault(site, {})[ours] = np.array(archive[key])
    return found


def encode(layout: Layout, arrays: Arrays, family: str) -> dict[str, np.ndarray]:
    """The tensors."""
    return {key: np.asarray(arrays[site][ours]) for key, (site, ours) in keys_of(layout, arrays, family).items()}


def keys_of(layout: Layout, sites: Iterable[str], family: str) -> dict[str, tuple[str, str]]:
    """The site and our name of each tensor."""
    parts = list(FAMILIES[family].matrices)

    def place(site: str) -> tuple[float, int]:
        found = re.fullmatch(r"layers\.(\d+)\.(.+)", site)
        return (int(found[1]), parts.index(found[2])) if found and found[2] in parts else (math.inf, 0)

    return {
        f"base_model.{theirs}.{number}": (site, ours)
        for ours, theirs in layout.numbered.items()
        for number, site in enumerate(sorted(sites, key=place))
    }
