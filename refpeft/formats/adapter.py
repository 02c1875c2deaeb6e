"""An adapter, as files hold one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refpeft.methods import Arrays, Method


@dataclass(frozen=True)
class Adapter:
    """An adapter in a file.

    Attributes
    ----------
    method : Method
    arrays : dict of site to dict of str to array
        As `refpeft.models.LanguageModel.attach` takes them.
    config : dict
        All fields of the file that it was read from.
    family : str
        Of the model that it is for, see `refpeft.formats.names`: what peft calls its sites.
    head : dict of site to dict of str to array
        What was trained whole beside it, of a `refpeft.models.TextClassifier`: peft's ``modules_to_save``.
    labels : tuple of str
        What the outputs of its classifier are called, if anything; peft's files do not say it.
    """

    method: Method
    arrays: Arrays
    config: Mapping[str, Any] = field(default_factory=dict)
    family: str = "llama"
    head: Arrays = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def pattern(self) -> str:
        """Its sites, between commas."""
        return ",".join(self.arrays)
