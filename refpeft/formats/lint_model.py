"""Whether an adapter fits a model: the model's name, its modules and their sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np

from refpeft.errors import RefpeftError
from refpeft.formats import adapters, peft
from refpeft.formats.lint_folder import Finding, Folder
from refpeft.formats.names import FAMILIES

Shapes = Mapping[str, tuple[int, ...]]


def another_base(adapter: Folder, base: str) -> Iterator[Finding]:
    """A model of another name than the adapter's."""
    field = {"peft": "base_model_name_or_path", "AdapterHub": "model_name", "refpeft": "base"}[adapter.form]
    said = str(adapter.config.get(field) or "")
    if said and os.path.basename(os.path.normpath(said)) != os.path.basename(os.path.abspath(base)):
        yield Finding("note", field, f"is {said}, but the model here is {base}", "see that it is the same model")


def unfitting(adapter: Folder, shapes: Shapes) -> Iterator[Finding]:
    """Modules that the model does not have, that it has in another size, or that peft adapts though no tensor is there."""
    config, do, modules = (
        adapter.config,
        "look for the model that it was trained on",
        set(filter(None, adapter.modules)),
    )
    known = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    names = FAMILIES[peft.model_family(adapter.tensors)]
    if any(names.owns(module) and module == names.headless(module) for module in modules):
        known = {names.headless(name): shape for name, shape in known.items()}
    held = {module for module in modules if any(name.startswith(f"{module}.") for name in known)}
    for module in sorted(modules - held - set(known)):
        yield Finding("error", module, "is not in the model", do)
    for module in sorted(set(known) - modules):
        if modules and config.get("target_modules") != "all-linear" and adapter.targets(module):
            what = "is among target_modules, but has no tensors: peft starts it anew"
            yield Finding("warning", module, what, "list modules by their whole names")
    for module in sorted(modules & set(known)):
        for wide, tall in adapter.pairs(module) if len(known[module]) == 2 else ():
            (_, i), (o, _) = (adapter.tensors.shape(adapter.modules[module][n]) for n in (wide, tall))
            wanted = known[module][::-1] if "embedding" in wide or config.get("fan_in_fan_out") else known[module]
            if (o, i) != wanted:
                yield Finding("error", module, f"adapts a weight of {(o, i)}, but the model's is {wanted}", do)


def unfitting_site(adapter: Folder, shapes: Shapes) -> Iterator[Finding]:
    """The same of refpeft's own form, as far as its method merges into a matrix."""
    loaded = adapters.load(adapter.path)
    for site, arrays in loaded.arrays.items() if not loaded.method.not_mergeable else ():
        try:
            shape = shapes[peft.tensor_of(site, loaded.family)]
            o, i = shape[::-1] if FAMILIES[loaded.family].input_first else shape
            loaded.method.merging(np.broadcast_to(np.float32(1), (o, i)), arrays)
        except (RefpeftError, KeyError) as error:
            what = "is not in the model" if isinstance(error, KeyError) else str(error)
            yield Finding("error", site, what, "look for the model that it was trained on")
