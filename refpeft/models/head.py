"""What a folder has of the head of a classifier: its parts, and what its labels are called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from refpeft.convert.source import Source, open_model
from refpeft.errors import CapabilityError, FormatError
from refpeft.formats.names import HEAD, listed, numbered

_KIND = "single_label_classification"
"""transformers' name of the problem that is computed, of several."""


class Head(NamedTuple):
    """Of a folder.

    Attributes
    ----------
    parts : tuple of str
        Those that are there, of ``pooler`` and ``classifier``.
    labels : tuple of str
        One for each output of the classifier; empty where there is none.
    """

    parts: tuple[str, ...]
    labels: tuple[str, ...]


def head_of(path: str | os.PathLike[str], source: Source | None = None) -> Head:
    """The head of the model in a folder, which may be open already.

    Raises
    ------
    FormatError
        If the configuration has other labels than the classifier.
    CapabilityError
        If its outputs are not those of labels of which a text has one.
    """
    source = open_model(path, four_bit=True) if source is None else source
    config = source.config or {}
    parts = tuple(part for part, theirs in HEAD.items() if f"{theirs}.weight" in source.tensors)
    if "classifier" not in parts:
        return Head(parts, ())
    if (kind := config.get("problem_type")) not in (None, _KIND):
        raise CapabilityError(f"{path}: problem_type is {kind!r}, but {_KIND} is computed.")
    return Head(parts, _names(path, config, source.tensors[f"{HEAD['classifier']}.weight"].shape[0]))


def _names(path, config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """What the configuration calls so many labels."""
    if (said := config.get("id2label")) is None:
        return numbered(count)
    names = listed(said)
    if names is None or len(names) != count:
        raise FormatError(f"{path}: id2label must name the {count} labels of its classifier, but {said!r} came.")
    return names
