"""How each method stands in peft's files: a row for each reading that peft has of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from refpeft.methods import Method
from refpeft.methods.c3a import C3A
from refpeft.methods.delora import DeLoRA
from refpeft.methods.dora import DoRA
from refpeft.methods.hira import HiRA
from refpeft.methods.hra import HRA, HRAGramSchmidt
from refpeft.methods.ia3 import IA3
from refpeft.methods.layer_norm import LayerNormTuning
from refpeft.methods.loha import LoHa
from refpeft.methods.lora import LoRA, RsLoRA
from refpeft.methods.miss import BatMiSS, MiSS
from refpeft.methods.oft import OFT
from refpeft.methods.road import RoAd

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """One method, as peft writes it.

    Attributes
    ----------
    method : type
    kind : str
        peft's type.
    tensors : mapping of str to str
        Our name of an array, and peft's of the tensor in a module.
    fields : mapping of str to str
        peft's field, and ours of the method.
    theirs : mapping of str to object
        Fields of peft that say it is this one.
    ours : mapping of str to object
        Fields of the method that peft has no other reading of.
    shapes : mapping of str to (shape, shape)
        An array's shape there and here, where they differ; -1 is what is left.
    since : tuple of int
        peft's version from which on the reading is this one.
    input_first : bool
        Whether peft puts it on matrices that are stored as (i, o) too, as GPT-2's are.
    """

    method: type[Method]
    kind: str
    tensors: Mapping[str, str]
    fields: Mapping[str, str]
    theirs: Mapping[str, Any] = {}
    ours: Mapping[str, Any] = {}
    shapes: Mapping[str, tuple[Shape, Shape]] = {}
    since: tuple[int, ...] = ()
    input_first: bool = False

    def writes(self, method: Method) -> bool:
        """Whether the method is this one."""
        return type(method) is self.method and all(getattr(method, n) == v for n, v in self.ours.items())

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether the configuration is of this one; a field that it lacks is as good as false, or as an empty list."""
        return config.get("peft_type") == self.kind and all(
            (config.get(n) or False) == v for n, v in self.theirs.items()
        )


def version(config: Mapping[str, Any]) -> tuple[int, ...]:
    """peft's version that wrote a configuration, as far as it is numbers."""
    found = re.match(r"\d+(\.\d+)*", str(config.get("peft_version") or ""))
    return tuple(map(int, found[0].split("."))) if found else ()


_LORA = {"a": "lora_A.weight", "b": "lora_B.weight"}
_DORA = _LORA | {"magnitude": "lora_magnitude_vector"}
_LOHA = {n: f"hada_{n}" for n in ("w1_a", "w1_b", "w2_a", "w2_b")}
_RANK, _SCALED = {"r": "rank"}, {"r": "rank", "lora_alpha": "alpha"}
_DELORA = {"a": "delora_A", "b": "delora_B", "boundary": "delora_lambda", "norms": "delora_w_norm"}
_NORM = {n: f"ln_tuning_layers.{n}" for n in ("weight", "bias")}
_COLUMN = {"scale": ((-1, 1), (-1,))}
_TURNED = {"oft_block_size": "block", "block_share": "share"}
_SERIES = _TURNED | {"num_cayley_neumann_terms": "terms"}

LAYOUTS = (
    Layout(LoRA, "LORA", _LORA, _SCALED, {"use_rslora": False, "use_dora": False}, input_first=True),
    Layout(RsLoRA, "LORA", _LORA, _SCALED, {"use_rslora": True, "use_dora": False}, input_first=True),
    Layout(DoRA, "LORA", _DORA, _SCALED, {"use_rslora": False, "use_dora": True}, input_first=True),
    Layout(LoHa, "LOHA", _LOHA, {"r": "rank", "alpha": "alpha"}),
    Layout(IA3, "IA3", {"scale": "ia3_l"}, {}, {"feedforward_modules": False}, {"side": "output"}, _COLUMN, input_first=True),
    Layout(HRA, "HRA", {"u": "hra_u"}, _RANK, {"apply_GS": False}),
    Layout(HRAGramSchmidt, "HRA", {"u": "hra_u"}, _RANK, {"apply_GS": True}),
    Layout(HiRA, "HIRA", {"a": "hira_A", "b": "hira_B"}, _RANK, input_first=True),
    Layout(RoAd, "ROAD", {"theta": "road_theta", "alpha": "road_alpha"}, {"variant": "variant", "group_size": "group"}),
    Layout(C3A, "C3A", {"kernel": "c3a_kernel"}, {"block_size": "block"}, {}, {"normalised": True}),
    Layout(OFT, "OFT", {"skew": "oft_R.weight"}, _SERIES, {"use_cayley_neumann": True}, {"variant": "neumann"}, since=(0, 18)),
    Layout(OFT, "OFT", {"skew": "oft_R.weight"}, _TURNED, {"use_cayley_neumann": False}, {"variant": "peft", "terms": 5}),
    Layout(MiSS, "MISS", {"block": "miss_block"}, _RANK, {"init_weights": True}, {"mini": 0}),
    Layout(BatMiSS, "MISS", {"block": "miss_block"}, _RANK, {"init_weights": "bat"}),
    Layout(DeLoRA, "DELORA", _DELORA, {"r": "rank", "delora_lambda": "boundary"}, {}, {"floor": 1e-4}, {"boundary": ((1,), ())}),
    Layout(LayerNormTuning, "LN_TUNING", _NORM, {}),
)  # fmt: skip
"""Every reading, each told from the others of its type by ``theirs``."""


def written(method: Method) -> Layout | None:
    """The layout of a method, if peft's files have one for it."""
    return next((layout for layout in LAYOUTS if layout.writes(method)), None)


def read(config: Mapping[str, Any]) -> Layout | None:
    """The layout that a configuration is of, if it is known."""
    return next((layout for layout in LAYOUTS if layout.reads(config)), None)
