"""Arrays that a matrix has in common with those of its kind in other layers, in peft's files: Lily's.

Each module has a tensor of its own in the file. Which of them are one when they are loaded depends on how ``target_modules``
names the modules: by the end of their names, those of a kind belong together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from refpeft.formats.names import FAMILIES
from refpeft.methods import Arrays, Method


def apart(method: Method, arrays: Arrays) -> str:
    """Two sites with arrays of their own that the method has in common, as a sentence; "" where there are none."""
    for name, (first, *others) in method.in_common(arrays):
        for site in others:
            if not np.array_equal(arrays[site][name], arrays[first][name]):
                return f"{first} and {site} have one {name} under {method!r}, but two came"
    return ""


def unnamed(sites: Iterable[str], family: str) -> str:
    """Why ends of names and numbers of layers do not say which modules there are; "" where they do."""
    kinds, layers = _both(sites)
    if len(set(sites)) != len(kinds) * len(layers):
        return "layers have it at other matrices than others, which peft cannot be told"
    known = FAMILIES[family].matrices
    for kind in kinds:
        if any(theirs.endswith(f".{known[kind]}") for theirs in known.values()):
            return f"peft takes other matrices for {kind}, whose names end alike"
    return ""


def fields(sites: Iterable[str], family: str) -> dict[str, Any]:
    """Those that name the modules."""
    kinds, layers = _both(sites)
    return {"target_modules": [FAMILIES[family].matrices[kind] for kind in kinds], "layers_to_transform": layers}


def _both(sites: Iterable[str]) -> tuple[list[str], list[int]]:
    """Kinds of matrices, and layers."""
    found = [re.fullmatch(r"layers\.(\d+)\.(.+)", site) for site in sites]
    places = [(place[2], int(place[1])) for place in found if place]
    return list(dict.fromkeys(kind for kind, _ in places)), sorted({layer for _, layer in places})
