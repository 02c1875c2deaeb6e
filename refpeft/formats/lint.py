"""What of an adapter would not survive another library or another machine.

Each check is a function of the folder that yields what it finds, and says in its docstring why it matters. What peft does is
what peft 0.21 does.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from refpeft.errors import CapabilityError, RefpeftError
from refpeft.files import understood
from refpeft.formats import adapterhub, adapters, peft, peft_fields, peft_layouts, peft_prompts, peft_ranks
from refpeft.formats.lint_facts import DRAWN, FACTOR, FOLLOWED, NAMED, RANKED, STARTS, STILL, WHOLE
from refpeft.formats.lint_folder import Finding, Folder, ends, opened, within
from refpeft.formats.lint_model import Shapes, another_base, unfitting, unfitting_site
from refpeft.operation import matches

FLOAT16 = float(np.finfo(np.float16).max)
AGAIN = "save the adapter again, whole"
DEFAULT = 8
"""peft's r and lora_alpha of LoRA, where a configuration has none."""


def lint(folder: str | os.PathLike[str], base: str = "", shapes: Shapes | None = None) -> list[Finding]:
    """All findings, the worst first.

    Parameters
    ----------
    folder : path-like
    base : str
        The model that the adapter is to stand on, as it is called where it lies.
    shapes : mapping of str to tuple of int, optional
        Its tensors' shapes, by transformers' names.

    Raises
    ------
    FormatError
        If a file is missing or malformed.
    """
    with understood(folder):
        adapter = opened(folder)
        found = [finding for check in FORMS[adapter.form] + ALL for finding in check(adapter)]
        if shapes is not None:
            found += another_base(adapter, base)
            found += [finding for check in FITS[adapter.form] for finding in check(adapter, shapes)]
        found += refused(adapter, found)
    return sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.severity))


def unaccounted(adapter: Folder) -> Iterator[Finding]:
    """Tensors that the configuration has no place for: peft loads with strict=False and passes over them without a word."""
    config = adapter.config
    for name in adapter.others:
        module, _, array = name.removeprefix("base_model.model.").rpartition(".")
        if adapter.kind in WHOLE or within(module, config.get("modules_to_save")):
            continue
        if array == "trainable_tokens_delta" or (array == "bias" and config.get("bias") not in (None, "none")):
            continue
        if array == "weight" and module.removesuffix(".base_layer").endswith(("embed_tokens", "lm_head", "wte")):
            what = "a whole table of the base was saved; peft puts it back, a reader of the adapter's arrays alone does not"
            yield Finding("warning", name, what, "save with save_embedding_layers=False unless it was changed")
        else:
            what = f"belongs to nothing that {adapter.kind} has, and peft passes over it silently"
            yield Finding("error", name, what, "name it as peft does, base_model.model.MODULE.ARRAY, or leave it out")
    for module, arrays in adapter.modules.items():
        if module and config.get("target_modules") and not adapter.targets(module):
            what = f"the configuration gives it no adapter, and peft passes over {_some(arrays)} silently"
            yield Finding("error", module, what, "add it to target_modules, or leave its tensors out")


def named(adapter: Folder) -> Iterator[Finding]:
    """Names with an adapter's own name in them, as a model's state dict has, and two tensors in one place."""
    for name in adapter.tensors:
        if found := NAMED.search(name):
            what = f"holds an adapter's name, {found[2]}: peft reads it only where it is loaded by that name"
            yield Finding("warning", name, what, f"leave .{found[2]} out, as save_pretrained does")
    kept = {name for arrays in adapter.modules.values() for name in arrays.values()}
    for name in sorted(set(adapter.tensors) - kept - set(adapter.others)):
        yield Finding("error", name, "has the place of another tensor", "keep one of the two")


def unreached(adapter: Folder) -> Iterator[Finding]:
    """Modules that the configuration names and that have no tensors: peft starts them anew, and warns at most."""
    for field in ("target_modules", "modules_to_save"):
        named, holds = adapter.config.get(field), ends if field == "target_modules" else within
        there = list(filter(None, adapter.modules)) if field == "target_modules" else adapter.saved(named)
        for end in named if isinstance(named, list) and there else []:
            if not any(holds(module, [end]) for module in there):
                yield Finding("warning", field, f"names {end}, which has no tensors", f"take {end} out of it")
        if field == "modules_to_save" and named and not there:
            what = f"names {_some(named)}, of which the file has nothing"
            yield Finding("error", field, what, "save the adapter again with peft, which keeps them")


def halves(adapter: Folder) -> Iterator[Finding]:
    """Arrays without those they are multiplied by: peft leaves the other one at its start, which is zero or random."""
    for module, arrays in adapter.modules.items():
        layout = peft_layouts.read(adapter.config, arrays)
        expected = set(layout.tensors.values()) if layout else set()
        wanted = {other for array in arrays if (other := _partner(array))}
        if module and not any("embedding" in array for array in arrays):
            wanted |= expected
        for array in sorted(wanted - set(arrays)):
            yield Finding("error", module or array, f"has {_some(arrays)} but no {array}", AGAIN)


def misshapen(adapter: Folder) -> Iterator[Finding]:
    """Shapes that contradict each other or the rank; one without elements is a shard that was not gathered before saving."""
    config = adapter.config
    for module, arrays in adapter.modules.items():
        for name in arrays.values():
            shape = adapter.tensors.shape(name)
            if not math.prod(shape):
                what = f"has shape {shape}: nothing is in it, as where shards were not gathered before saving"
                yield Finding("error", name, what, "gather the parameters and save again, or leave it out")
        for wide, tall in adapter.pairs(module):
            rank = peft_ranks.own(config.get("rank_pattern"), module, config.get("r") or DEFAULT)
            a, b = (adapter.tensors.shape(arrays[n]) for n in (wide, tall))
            if min(len(a), len(b)) < 2 or a[0] != b[1]:
                what = f"{wide} {a} and {tall} {b} have no inner size in common"
                yield Finding("error", module, what, AGAIN)
            elif a[0] != rank:
                what = f"{wide} has {a[0]} rows, but r and rank_pattern say {rank:g}: peft cannot load it"
                yield Finding("error", module, what, "set rank_pattern, and alpha_pattern with it")


def scaled(adapter: Folder) -> Iterator[Finding]:
    """A scaling that is implied, or that not every reader takes from the same fields."""
    config, rank = adapter.config, adapter.config.get("r") or DEFAULT
    for field in ("r", "lora_alpha") if adapter.kind == "LORA" else ():
        if config.get(field) is None:
            yield Finding(
                "warning", field, f"is missing: peft takes {DEFAULT}, others what they like", f"write {field}"
            )
    if adapter.kind == "LORA" and config.get("use_rslora"):
        alpha = config.get("lora_alpha") or DEFAULT
        what = f"scales by {alpha / math.sqrt(rank):.4g}; who does not know the field scales by {alpha / rank:.4g}"
        do = f"or write lora_alpha {alpha * math.sqrt(rank):.6g} and use_rslora false"
        yield Finding("note", "use_rslora", what, do)
    for field in peft_ranks.FIELDS if adapter.kind in RANKED else ():
        if config.get(field):
            what = "gives modules a value of their own; who reads r and lora_alpha alone scales them otherwise"
            yield Finding("note", field, what, "fold each module's scaling into its B, where one value must do for all")


def drawn(adapter: Folder) -> Iterator[Finding]:
    """What is not in the file but drawn or computed again: equal only with the same generator, library and base."""
    marker, what, against = DRAWN.get(adapter.kind, ("", "", ""))
    held = marker and any(a.startswith(marker) for arrays in adapter.modules.values() for a in arrays)
    if what and not held:
        promised = (flag := against.partition(" ")[0]) and adapter.config.get(flag) is True
        severity = "error" if promised and adapter.kind != "TINYLORA" else "warning"
        do = f"save with {against}" if against else "keep refpeft's own form, with every array, or the merged model"
        if adapter.kind in FOLLOWED:
            severity, do = "note", "merge it where neither is at hand"
        said = ", although the field promises that it is" if promised else ""
        yield Finding(severity, flag or adapter.kind, f"{what}, and not in the file{said}", do)
    if adapter.config.get("save_only_topk_weights"):
        what = "what was not among the first is gone: it computes the same, but cannot be trained further"
        yield Finding("note", "save_only_topk_weights", what, "save with save_only_topk_weights false to go on")


def started_elsewhere(adapter: Folder) -> Iterator[Finding]:
    """A start that took its part off the base weight: over the weight as it was the adapter computes something else."""
    start = str(adapter.config.get("init_lora_weights")).lower()
    for name, (severity, who) in STARTS.items() if adapter.kind == "LORA" else ():
        if start.startswith(name):
            do = "save with path_initial_model_for_weight_conversion, or keep the changed base beside it"
            do = "keep the quantised base beside it" if name == "loftq" else do
            yield Finding(severity, "init_lora_weights", f"{start} changed the base weight: {who}", do)


def infinite(adapter: Folder) -> Iterator[Finding]:
    """Values that are no numbers, or none in float16: all that is computed with them is lost."""
    for name in adapter.tensors:
        values = adapter.values(name)
        if bad := int(np.count_nonzero(~np.isfinite(values))):
            what = f"{bad} of {values.size} values are not finite"
            yield Finding("error", name, what, "train again from a checkpoint before")
        elif values.size and (most := np.abs(values).max()) > FLOAT16 and adapter.tensors.dtype(name).kind not in "iub":
            what = f"reaches {most:.3g}, which float16 (up to {FLOAT16:g}) has not"
            yield Finding("warning", name, what, "run it in bfloat16 or float32")


def at_start(adapter: Folder) -> Iterator[Finding]:
    """An adapter that does nothing: what was saved was not trained, or its training did not reach it."""
    there = [(m, n, STILL[a]) for m, arrays in adapter.modules.items() for a, n in arrays.items() if a in STILL]
    still = [module for module, name, value in there if np.all(adapter.values(name) == value)]
    do = "look whether it was saved before training, or whether its parameters had gradients"
    if still and not adapter.config.get("use_dora"):
        if len(still) == len(there):
            yield Finding("warning", adapter.kind, "every module is at its start: the adapter does nothing", do)
        else:
            yield Finding("note", _some(still), "is at its start and does nothing", do)


def stored(adapter: Folder) -> Iterator[Finding]:
    """What numbers are stored in where it is not float32: peft computes with 16 bits in float32, others in what they find."""
    dtypes = [adapter.tensors.dtype(name) for name in adapter.tensors]
    names = [dtype.name for dtype in dtypes if dtype.kind not in "iub"]
    for name in sorted(set(names) - {"float32"}):
        what = f"{names.count(name)} of {len(names)} tensors: " + (
            "peft computes with them in float32, others may as stored" if "16" in name else "not every library reads it"
        )
        yield Finding("note", name, what, "store float32, unless the base is in the same")


def unknown(adapter: Folder) -> Iterator[Finding]:
    """Fields that are not understood here, and a version of peft that may have brought such."""
    if peft_layouts.read(adapter.config) or adapter.kind in peft_prompts.KINDS:
        fields = peft.beside_head(adapter.config, adapter.tensors)
        for name, value in peft_fields.not_understood(fields, peft.model_family(adapter.tensors)).items():
            yield Finding("warning", name, f"is {value!r}, which refpeft does not know", "unset it, or stay with peft")
    version = peft_layouts.version(adapter.config)
    if version[:2] > (0, 21):
        what = f"{adapter.config['peft_version']} is newer than 0.21: older ones drop the fields that they do not know"
        yield Finding("note", "peft_version", what, "load it with that version or a later one")


def homeless(adapter: Folder) -> Iterator[Finding]:
    """A base that nobody else finds: without a name, or by a path of the machine that wrote it."""
    field, base = "base_model_name_or_path", adapter.config.get("base_model_name_or_path")
    if not base:
        yield Finding("note", field, "is empty: nothing says which model the adapter is for", "write the model's name")
    elif re.match(r"[/~.]|[A-Za-z]:\\", str(base)):
        yield Finding("note", field, f"is {base}, a path of the machine that wrote it", "write the model's name")


def apart(adapter: Folder) -> Iterator[Finding]:
    """refpeft's own form, which other libraries do not read; arrays that the method needs and the file lacks."""
    method = adapters.load(adapter.path).method
    what = f"is refpeft's own form of {adapter.kind}, which no other library reads"
    do = "load it with refpeft" if method.not_mergeable else "merge it to share it"
    yield Finding("note", adapters.CONFIG, what, do)
    if (adapter.path / peft.CONFIG).is_file():
        yield Finding("warning", peft.CONFIG, "another adapter lies beside, which peft reads", "give each a folder")
    common = set(adapter.modules.get("", ()))
    beside = method.beside()
    for site, arrays in adapter.modules.items():
        own = next((other for pattern, other in beside.items() if matches(site, pattern)), method)
        needed = {*own.trainable, *own.fixed} - {"weight", *own.following}
        for array in sorted(needed - set(arrays) - common) if site and not site.startswith(adapters.HEAD) else ():
            yield Finding("error", site, f"lacks {array}, which {adapter.kind} needs", AGAIN)


def elsewhere(adapter: Folder) -> Iterator[Finding]:
    """AdapterHub's form, which peft does not read, and a head that was saved beside the adapter, which no base has."""
    yield Finding("note", adapterhub.TENSORS, "is AdapterHub's form, which peft does not read", "load it with adapters")
    for head in sorted(adapter.path.glob("*model_head.*")):
        what = "a head was saved beside the adapter: AdapterHub puts it in, refpeft does not read it"
        yield Finding("warning", head.name, what, "save with with_head=False unless it was trained")


def refused(adapter: Folder, found: list[Finding]) -> Iterator[Finding]:
    """What refpeft's own reader refuses, with its reason, where nothing above has said it."""
    try:
        adapters.load(adapter.path)
    except RefpeftError as error:
        reason = str(error).removeprefix(f"{adapter.path / peft.CONFIG}: ")
        said = [f.where for f in found if f.severity != "note" and f.where != adapter.kind]
        if any(re.search(rf"\b{re.escape(where)}\b", reason) for where in said):
            return
        if isinstance(error, CapabilityError):
            what = f"refpeft does not read it: {reason}"
            yield Finding("warning", adapter.kind, what, "stay with peft, or merge it there")
        elif not any(f.severity == "error" for f in found):
            yield Finding("error", adapter.kind, reason, AGAIN)


def _partner(array: str) -> str:
    """The other of a pair, or nothing."""
    found = re.fullmatch(FACTOR, array)
    return f"{found[1]}{found[2].translate(str.maketrans('ABab', 'BAba'))}{found[3] or ''}" if found else ""


def _some(names: Iterable[str]) -> str:
    """The first three of them."""
    first = list(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")


ALL: tuple[Callable[[Folder], Iterator[Finding]], ...] = (infinite, stored)
PEFT = (unaccounted, named, unreached, halves, misshapen, scaled, drawn, started_elsewhere, at_start, unknown, homeless)
FORMS = {"peft": PEFT, "AdapterHub": (elsewhere,), "refpeft": (apart,)}
FITS = {"peft": (unfitting,), "AdapterHub": (), "refpeft": (unfitting_site,)}
