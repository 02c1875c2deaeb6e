"""FRoD's basis and places in peft's files, which matrices of a kind have in common: ``base_model.frod_V.self_attn_q_proj``.

Not in the file is U, which follows from the basis and the base weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from refpeft.errors import FormatError
from refpeft.formats.names import FAMILIES
from refpeft.formats.safetensors import Lazy

ROOT = "base_model."
BASIS, PLACES, SIZE = "frod_V", "frod_s_indices", "frod_s_size"


def is_common(key: str) -> bool:
    """Whether a tensor is one of a kind's."""
    return any(key.startswith(f"{ROOT}{name}.") for name in (BASIS, PLACES, SIZE))


def decode(where: Any, sites: Iterable[str], family: str, archive: Lazy) -> dict[str, dict[str, np.ndarray]]:
    """``v`` (i, i) and ``places`` (k,) of each site, counted along the rows.

    Raises
    ------
    FormatError
        If a kind lacks one, there is one too many, or they are not of one size.
    """
    kinds = {site: _kind(FAMILIES[family].adapted(site) or "") for site in sites}
    known: dict[str, dict[str, np.ndarray]] = {}
    for kind in dict.fromkeys(kinds.values()):
        keys = [f"{ROOT}{name}.{kind}" for name in (BASIS, PLACES, SIZE)]
        if missing := [key for key in keys if key not in archive]:
            raise FormatError(f"{where}: there is no {', '.join(missing)}, which matrices of a kind have in common.")
        basis, places, size = (np.array(archive[key]) for key in keys)
        i = len(basis) if basis.ndim else 0
        fits = basis.shape == (i, i) and places.shape[:1] == (2,) and places.ndim == 2 and size.tolist() == [i, i]
        if not fits or (places.size and not 0 <= places.min() <= places.max() < i):
            came = f"{basis.shape}, {places.shape} and {size.tolist()}"
            raise FormatError(f"{where}: {BASIS} (i, i), {PLACES} (2, k) and {SIZE} i, i of {kind} do not fit: {came}.")
        known[kind] = {"v": basis, "places": places[0].astype(np.int64) * i + places[1]}
    if strange := [key for key in archive if is_common(key) and key.split(".")[2] not in known]:
        raise FormatError(f"{where}: the tensor {strange[0]!r} belongs to no matrix that has an adapter.")
    return {site: known[kind] for site, kind in kinds.items()}


def _kind(module: str) -> str:
    """peft's name of a module's kind: the last two parts of its own."""
    parts = module.split(".")
    if parts[-2:] == ["output", "dense"] and parts[-3:-2] == ["attention"]:
        return "attention_output"
    return "_".join(parts[-2:])
