"""What ``docs/findings`` says of peft, as calls: so that everything apart from it can be certified too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refpeft_hf.declared import Reason


def _conv(shapes, attributes) -> bool:
    return tuple(attributes["dilation"]) != (1, 1) or attributes["padding_mode"] != "zeros"


def _vector(shapes, attributes) -> bool:
    return len(shapes["x"]) == 1


def _four_axes(shapes, attributes) -> bool:
    return len(shapes["x"]) == 4


def _empty(shapes, attributes) -> bool:
    return 0 in shapes["x"]


def _bias(shapes, attributes) -> bool:
    return "bias" in shapes


def _float32_scale(shapes, attributes) -> bool:
    return float(np.float32(attributes["scaling"])) != attributes["scaling"]


def _asymmetric_or_empty(shapes, attributes) -> bool:
    return shapes["kernel"][2] > 2 or _empty(shapes, attributes)


def _no_wavelet(shapes, attributes) -> bool:
    return attributes["wavelet"] in ("db3", "coif4", "coif5")


COVERED = {
    "lora.conv2d": {"peft-lora-conv": _conv},
    "dora.linear": {"peft-dora-vector": _vector},
    "boft.linear": {"peft-boft-bias": _bias},
    "oft.linear": {"peft-oft-axes": _four_axes},
    "gralora.linear": {"peft-empty-batch": _empty},
    "c3a.linear_fft": {"peft-c3a": _asymmetric_or_empty},
    "lily.linear": {"peft-empty-batch": _empty},
    "loha.linear": {"peft-loha-scale": _float32_scale},
    "loha.merge": {"peft-loha-scale": _float32_scale},
    "loha.conv2d": {"peft-loha-scale": _float32_scale},
    "waveft.linear": {"peft-waveft-wavelets": _no_wavelet},
    "waveft.merge": {"peft-waveft-wavelets": _no_wavelet},
}
"""Operation -> page -> whether a call, given the shapes of its inputs and its attributes, is one that the page covers."""

SINGLE = {
    "fourierft.linear": "peft-fourierft-float32",
    "fourierft.merge": "peft-fourierft-float32",
    "c3a.linear_fft": "peft-c3a",
    "c3a.merge_fft": "peft-c3a",
}
"""Operation -> page that says that peft computes its update in float32, whatever the layer's dtype."""


def single(operation: str) -> dict[str, str]:
    """What an operation lacks by dtype: float64, where its update is float32.

    To declare a precision for it instead would loosen the base layer's product too, which is in float64.
    """
    return {"float64": f"docs/findings/{SINGLE[operation]}.md"} if operation in SINGLE else {}


def covered(operation: str) -> Reason:
    """The page that covers a call, as a reason to turn it away."""
    pages: Mapping = COVERED.get(operation, {})
    return lambda shapes, attributes: next(
        (f"docs/findings/{page}.md" for page, covers in pages.items() if covers(shapes, attributes)), ""
    )
