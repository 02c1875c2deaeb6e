"""Arrays that all modules share, in peft's files: one tensor each for the whole model, ``base_model.vera_A`` say.

peft makes them for the most inputs and the most outputs that a module has, and each module takes its corner, as
`refpeft.methods.Method.corners` says. Where they are not in the file, torch draws them again. Of RandLoRA's, peft also writes a
copy for each module, which is all the same array once it is loaded: it is read, and not written, though peft says that it
misses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refpeft.errors import CapabilityError, FormatError
from refpeft.formats.peft_layouts import Layout
from refpeft.formats.safetensors import Lazy
from refpeft.methods import Arrays, Method

KEPT = {
    "save_projection": "frozen arrays are not in the file, but drawn again by torch from {seed}",
    "save_indices": "indices are not in the file, but dealt again by {seed} to all modules of a model",
}
"""Fields that say whether what is frozen is kept, and what is so where it is not."""
SEEDS = ("projection_seed", "projection_prng_key", "proj_seed")
_SPACED = ("randlora_A",)
"""Tensors (r, 1, s) of arrays (r, s)."""


def is_shared(layout: Layout, key: str) -> bool:
    """Whether a tensor is one, or a module's copy."""
    return key.rpartition(".")[2] in layout.common.values()


def decode(
    where: Any, config: Mapping[str, Any], layout: Layout, method: Method, archive: Lazy
) -> dict[str, np.ndarray]:
    """The arrays, whole; none where the method's modules share nothing.

    Raises
    ------
    CapabilityError
        If the file is without them by intention.
    FormatError
        If it lacks one, modules have different ones, or the shape is not what the rank makes it.
    """
    for field in KEPT:
        if field in layout.said and config.get(field, True) is not True:
            seed = next((name for name in SEEDS if name in config), "a seed")
            raise CapabilityError(f"{where}: {field} is false, so that {KEPT[field].format(seed=seed)}.")
    if not layout.common:
        return {}
    arrays = {}
    for ours, theirs in layout.common.items():
        first, *copies = [key for key in archive if key.endswith(f".{theirs}")] or [""]
        if not first:
            raise FormatError(f"{where}: there is no {theirs}, which the modules share.")
        array = np.array(archive[first])
        if any(not np.array_equal(archive[copy], array) for copy in copies):
            raise FormatError(f"{where}: one {theirs} is expected for all modules, but {first} differs from others.")
        arrays[ours] = array[:, 0] if theirs in _SPACED and array.shape[1:2] == (1,) else array
    ends = list(arrays.values())
    largest = tuple(len(array) if array.ndim else 0 for array in (ends[-1], ends[0].T))
    came, made = {n: array.shape for n, array in arrays.items()}, method.corners(largest)
    if came != made:
        raise FormatError(f"{where}: modules under {method!r} share arrays of the shapes {made}, but {came} came.")
    return arrays


def encode(layout: Layout, arrays: Arrays) -> dict[str, np.ndarray]:
    """The tensors.

    Raises
    ------
    CapabilityError
        If the sites have several.
    """
    if name := apart(layout, arrays):
        raise CapabilityError(
            f"peft has one {layout.common[name]} for all modules, but sites have {name} of their own."
        )
    first = next(iter(arrays.values()), {})
    return {
        f"base_model.{theirs}": np.expand_dims(first[ours], 1) if theirs in _SPACED else np.asarray(first[ours])
        for ours, theirs in layout.common.items()
    }


def apart(layout: Layout, arrays: Arrays) -> str:
    """An array that is not the same at all sites, though their modules would share it in peft."""
    first = next(iter(arrays.values()), {})
    for name in layout.common:
        for its in arrays.values():
            if its[name] is not first[name] and not np.array_equal(its[name], first[name]):
                return name
    return ""
