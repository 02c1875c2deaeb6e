"""What ``docs/findings`` says of AdapterHub's adapters, as calls: so that everything apart from it can be certified too."""

from __future__ import annotations

from refpeft_hf.findings import HALVES


def _everything(shapes, attributes) -> bool:
    return True


def _scaled_or_biased(shapes, attributes) -> bool:
    return attributes["scaling"] != 1 or "bias" in shapes


def _biased(shapes, attributes) -> bool:
    return "bias" in shapes


def _scaled(shapes, attributes) -> bool:
    return attributes["scaling"] != 1


def _not_three_axes(shapes, attributes) -> bool:
    return len(shapes["x"]) != 3


def _tempered(shapes, attributes) -> bool:
    return attributes["temperature"] != 1


COVERED = {
    "adapter.fusion": {"adapters-fusion": _tempered},
    "dora.linear": {"adapters-dora": _scaled_or_biased},
    "dora.merge": {"adapters-dora": _scaled},
    "dvora.linear": {"adapters-dora": _biased},
    "ia3.linear": {"adapters-ia3": _not_three_axes},
    "xlora.linear": {"adapters-average": _everything},
}
"""Operation -> page -> whether a call, given the shapes of its inputs and its attributes, is one that the page covers."""

LACKING = {
    "adapter.sublayer": {"torch-layer-norm-backward": HALVES},
    "compacter.linear": {"adapters-compacter": HALVES},
    "compacter.phm": {"adapters-compacter": HALVES},
    "dvora.linear": {"adapters-vera": HALVES},
    "mtl_lora.linear": {"adapters-mtl-lora": HALVES},
    "reft.edit": {"adapters-reft": HALVES},
    "vera.linear": {"adapters-vera": HALVES},
}
"""Operation -> page -> dtypes that it covers: 16 bits, which it rounds to on the way, or does not take."""

FROZEN: dict[str, tuple[str, ...]] = {}

CONTIGUOUS: dict[str, str] = {}
"""Operation -> frozen inputs to which adapters gives no gradient."""
