"""An adapter's folder as it lies there, before it is understood: fields, tensors, and the modules that these name.

peft names a tensor ``base_model.model.MODULE.ARRAY``, or ``base_model.ARRAY`` where modules share it; ARRAY begins with the
method's prefix. refpeft's own name is ``SITE.ARRAY``, AdapterHub's ``MODULE.adapters.NAME.ARRAY``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refpeft.errors import FormatError
from refpeft.files import read_json
from refpeft.formats import adapterhub, adapters, peft, peft_fields, peft_ranks, safetensors
from refpeft.formats.lint_facts import NAMED, PAIRS, RANKED

_PREFIXES = {"ADALORA": "lora_", "ADAPTION_PROMPT": "adaption_", "LOHA": "hada_"}
"""Of peft's types whose arrays do not begin with the type's name."""


class Finding(NamedTuple):
    """One thing that would be lost or misread.

    Attributes
    ----------
    severity : str
        error: it is lost, or wrong, wherever it is read. warning: somewhere. note: it is well to know.
    where : str
        A field, a tensor or a module.
    what : str
    do : str
    """

    severity: str
    where: str
    what: str
    do: str


@dataclass(frozen=True)
class Folder:
    """What is in it.

    Attributes
    ----------
    path : Path
    form : str
        Whose it is: ``peft``, ``AdapterHub`` or ``refpeft``.
    config : dict
    tensors : refpeft.formats.safetensors.Lazy
    """

    path: Path
    form: str
    config: Mapping[str, Any]
    tensors: safetensors.Lazy

    @property
    def kind(self) -> str:
        """peft's type, or refpeft's name of the method."""
        if self.form == "AdapterHub":
            return "a bottleneck adapter"
        return str(self.config.get("peft_type" if self.form == "peft" else "method"))

    @cached_property
    def modules(self) -> dict[str, dict[str, str]]:
        """The tensor of each array of each module; those that are shared belong to the module ''."""
        found: dict[str, dict[str, str]] = {}
        for name in self.tensors:
            module, array = self._place(name)
            if array:
                found.setdefault(module, {})[array] = name
        return found

    @cached_property
    def others(self) -> list[str]:
        """Tensors whose names are not of the method."""
        return [name for name in self.tensors if not self._place(name)[1]]

    def saved(self, names: str | list[str] | None) -> list[str]:
        """Modules, of those named, that have tensors which are not of the method."""
        modules = (name.removeprefix("base_model.model.").rpartition(".")[0] for name in self.others)
        return [module for module in modules if within(module, names)]

    def pairs(self, module: str) -> list[tuple[str, str]]:
        """The module's factors (r, i) and (o, r), where they are plain ones."""
        arrays, config = self.modules[module], self.config
        if (
            self.kind not in RANKED
            or config.get("use_bdlora")
            or config.get("target_parameters")
            or "hada_t1" in arrays
        ):
            return []
        return [(wide, tall) for wide, tall in PAIRS if wide in arrays and tall in arrays]

    def values(self, name: str) -> np.ndarray:
        """A tensor in float64."""
        return np.asarray(self.tensors[name]).astype(np.float64)

    def targets(self, module: str) -> bool:
        """Whether peft gives the module an adapter: of the patterns a string is a regular expression, a list holds ends."""
        parents = [name.rpartition(".")[0] for name in self.config.get("target_parameters") or []]
        targets = self.config.get("target_modules")
        if ends(module, self.config.get("exclude_modules")):
            return False
        if ends(module, parents) or targets == "all-linear":
            return True
        return ends(module, targets) and (isinstance(targets, str) or self._in_chosen_layer(module))

    def _in_chosen_layer(self, module: str) -> bool:
        chosen, patterns = (self.config.get(n) for n in ("layers_to_transform", "layers_pattern"))
        if chosen is None or chosen == []:
            return True
        for pattern in ([patterns] if isinstance(patterns, str) else patterns) or [r"[^.]*"]:
            if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module):
                return int(found[1]) in (chosen if isinstance(chosen, list) else [chosen])
        return False

    def _place(self, name: str) -> tuple[str, str]:
        """Module and array, or nothing twice."""
        if self.form != "peft":
            site, _, array = name.rpartition(".")
            return "" if site == adapters.ALL else site, array
        prefix = _PREFIXES.get(self.kind, self.kind.lower() + "_")
        found = re.fullmatch(rf"base_model\.(?:model\.(.+?)\.)?({re.escape(prefix)}.+)", name)
        return (found[1] or "", NAMED.sub(r"\1\3", found[2])) if found else ("", "")


def ends(module: str, patterns: str | list[str] | None) -> bool:
    """Whether a module's name is one that a string matches, or ends with one of a list."""
    if isinstance(patterns, str):
        return bool(re.fullmatch(patterns, module))
    return any(module == end or module.endswith(f".{end}") for end in patterns or [])


def within(module: str, patterns: str | list[str] | None) -> bool:
    """Whether a module, or one that holds it, is one that `ends` finds: peft saves a module of modules whole."""
    parts = module.split(".")
    return any(ends(".".join(parts[:i]), patterns) for i in range(1, len(parts) + 1))


def opened(folder: str | os.PathLike[str]) -> Folder:
    """Read a folder of any form.

    Raises
    ------
    FormatError
        If a file is missing or malformed, or a field that is looked at has a value of another kind than it must have.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FormatError(f"{path}: there is no such folder, expected an adapter's.")
    if (path / adapters.CONFIG).is_file():
        return Folder(path, "refpeft", read_json(path / adapters.CONFIG), safetensors.scan(path / adapters.TENSORS))
    if adapterhub.is_there(path):
        config, tensors = adapterhub.opened(path)
        return Folder(path, "AdapterHub", config, tensors)
    config = peft_fields.configuration(path)
    _require_readable(path / peft.CONFIG, config)
    return Folder(path, "peft", config, safetensors.scan(path / peft.TENSORS))


def _require_readable(where: Path, config: Mapping[str, Any]) -> None:
    """Refuse fields that are not numbers, names or regular expressions where they must be."""
    if config.get("peft_type") in RANKED:
        for name in peft_ranks.FIELDS:
            peft_ranks.require_numbers(where, name, config.get(name) or {})
    for name in ("r", "lora_alpha") if config.get("peft_type") in RANKED else ():
        value = config.get(name)
        if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):
            raise FormatError(f"{where}: {name} must be a positive number, but {value!r} came.")
    for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "target_parameters"):
        value = config.get(name) or []
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise FormatError(f"{where}: {name} must be names of modules, but {value!r} came.")
        try:
            for pattern in [value] if isinstance(value, str) else value if name == "layers_pattern" else []:
                re.compile(pattern)
        except re.error as error:
            raise FormatError(f"{where}: {name} must be a regular expression, but {value!r} came: {error}.") from error
