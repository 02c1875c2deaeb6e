"""An adapter's folder: in peft's form where peft's files have a place for the method, in AdapterHub's where they are its
bottleneck adapters, in refpeft's own otherwise.

refpeft's own is ``refpeft_adapter.json``, with the method, its settings and what it was made for, beside
``refpeft_adapter.safetensors``, with every array as ``SITE.ARRAY``: frozen ones too, which other libraries draw again. One that
all sites have in common is there once, as ``*.ARRAY``. Beside either, ``labels.json`` says what a classifier's labels are called,
as transformers' ``id2label``.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refpeft.errors import AttributeValueError, FormatError
from refpeft.files import atomic_write, read_json, understood
from refpeft.formats import adapterhub, peft, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.formats.names import FAMILIES, listed
from refpeft.formats.safetensors_header import short
from refpeft.methods import Arrays, methods

if TYPE_CHECKING:
    from refpeft.models.transformer import Transformer

CONFIG, TENSORS, LABELS = "refpeft_adapter.json", "refpeft_adapter.safetensors", "labels.json"
ALL = "*"
"""In the place of a site's name, where an array is that of all."""
HEAD = "head:"
"""Before the name of a site of a classifier's head."""
_VERSION = 1


def save(folder: str | os.PathLike[str], adapter: Adapter, base: str = "") -> None:
    """Write an adapter, the configuration last.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    adapter : Adapter
    base : str
        What the configuration says of the model that it is for.

    Raises
    ------
    FormatError
        If a site has no module of that name in peft.
    """
    folder = Path(folder)
    if adapter.labels:
        folder.mkdir(parents=True, exist_ok=True)
        said = {"id2label": {str(i): name for i, name in enumerate(adapter.labels)}}
        atomic_write(folder / LABELS, (json.dumps(said, indent=2) + "\n").encode())
    if peft.is_written(adapter):
        peft.save(folder, adapter, base)
        return
    if adapterhub.is_written(adapter):
        adapterhub.save(folder, adapter, base)
        return
    folder.mkdir(parents=True, exist_ok=True)
    common = _common(adapter)
    tensors = {
        f"{ALL if n in common else site}.{n}": np.asarray(a)
        for site, arrays in adapter.arrays.items()
        for n, a in arrays.items()
    }
    tensors |= {f"{HEAD}{site}.{n}": np.asarray(a) for site, its in adapter.head.items() for n, a in its.items()}
    name = next(n for n, cls in methods().items() if cls is type(adapter.method))
    numbers = asdict(adapter.method)  # type: ignore[call-overload]
    config = {"version": _VERSION, "method": name, "settings": numbers, "base": base, "family": adapter.family}
    safetensors.save(folder / TENSORS, tensors)
    atomic_write(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def _common(adapter: Adapter) -> set[str]:
    """Arrays of which all sites have the same one."""
    first, *others = adapter.arrays.values() or [{}]
    return {name for name, array in first.items() if others and all(its.get(name) is array for its in others)}


def attach(model: Transformer, adapter: Adapter) -> None:
    """Put an adapter on a model.

    Raises
    ------
    FormatError
        If it is for matrices of a model of another family, has a head that the model has not, or an element that is no number.
    """
    family = model.shape.family
    if adapter.family != family and adapter.method.operation.endswith(".linear"):
        raise FormatError(
            f"the adapter is for a model of {adapter.family}'s family, but {model.shape.name} is of {family}'s."
        )
    require_finite(adapter)
    if adapter.head and not hasattr(model, "set_head"):
        raise FormatError(f"the adapter has a classifier's head, but {model.shape.name} was read without a classifier.")
    model.attach(adapter.pattern, adapter.method, arrays=adapter.arrays)
    if adapter.head:
        model.set_head(adapter.head)  # type: ignore[attr-defined]


def require_finite(adapter: Adapter) -> None:
    """Refuse an element that is no number that float32 holds.

    Raises
    ------
    FormatError
    """
    for site, arrays in adapter.arrays.items():
        for name, array in arrays.items():
            with np.errstate(over="ignore"):
                whole = np.isfinite(np.asarray(array, np.float32)).all()
            if not whole:
                raise FormatError(f"the adapter's {name} of {site} has an element that is not finite.")


def is_there(folder: Path) -> bool:
    """Whether a folder holds an adapter, whole."""
    return any((folder / name).is_file() for name in (CONFIG, peft.CONFIG))


def load(folder: str | os.PathLike[str]) -> Adapter:
    """Read an adapter of any form.

    Raises
    ------
    FormatError
        If a file is missing or malformed.
    CapabilityError
        If it is another library's, and the method, or a field that changes what it computes, is not one that is read.
    """
    folder = Path(folder)
    with understood(folder):
        found = _load(folder)
    return replace(found, labels=_labels(folder / LABELS, found.head)) if (folder / LABELS).is_file() else found


def _labels(where: Path, head: Arrays) -> tuple[str, ...]:
    """Those of a file, as many as the head's classifier has."""
    names = listed(read_json(where).get("id2label"))
    count = len(head["classifier"]["bias"]) if "classifier" in head else 0
    if names is None or len(names) != count:
        raise FormatError(f"{where}: id2label must name the {count} labels of the adapter's classifier.")
    return names


def _load(folder: Path) -> Adapter:
    """Without what the labels are called."""
    if not (folder / CONFIG).is_file():
        return (adapterhub if adapterhub.is_there(folder) else peft).load(folder)
    config = read_json(folder / CONFIG)
    cls, settings = methods().get(str(config.get("method"))), config.get("settings")
    if config.get("version") != _VERSION or cls is None or not isinstance(settings, dict):
        raise FormatError(
            f"{folder / CONFIG}: a version {_VERSION}, a method and settings are expected, got {short.repr(config)}."
        )
    if (family := config.get("family", "llama")) not in FAMILIES:
        raise FormatError(f"{folder / CONFIG}: family must be one of {', '.join(FAMILIES)}, got {short.repr(family)}.")
    try:
        method = cls(**settings)
    except (TypeError, AttributeValueError) as error:
        raise FormatError(f"{folder / CONFIG}: {error}") from error
    arrays: dict[str, dict[str, np.ndarray]] = {}
    archive = safetensors.scan(folder / TENSORS)
    for name in archive:
        site, _, array = name.rpartition(".")
        arrays.setdefault(site, {})[array] = np.array(archive[name])
    common, heads = arrays.pop(ALL, {}), [site for site in arrays if site.startswith(HEAD)]
    head = {site.removeprefix(HEAD): arrays.pop(site) for site in heads}
    if not arrays:
        raise FormatError(f"{folder / TENSORS}: there is no tensor, expected an adapter's.")
    return Adapter(method, {site: its | common for site, its in arrays.items()}, config, family, head)
