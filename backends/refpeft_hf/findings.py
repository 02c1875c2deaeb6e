"""What ``docs/findings`` says of peft, as calls: so that everything apart from it can be certified too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refpeft_hf.declared import Reason


def _conv(shapes, attributes) -> bool:
    return np.any(np.not_equal(attributes["dilation"], 1)) or attributes.get("padding_mode", "zeros") != "zeros"


def _not_square(shapes, attributes) -> bool:
    pairs = (shapes["weight"][2:], attributes["stride"], attributes["padding"])
    return np.any(np.not_equal(attributes["dilation"], 1)) or any(a != b for a, b in pairs)


def _patches(shapes, attributes) -> bool:
    return tuple(shapes["weight"][2:]) != (1, 1) or attributes["groups"] != 1


def _vector(shapes, attributes) -> bool:
    return len(shapes["x"]) == 1


def _four_axes(shapes, attributes) -> bool:
    return len(shapes["x"]) == 4


def _empty(shapes, attributes) -> bool:
    return 0 in shapes["x"]


def _no_sequence(shapes, attributes) -> bool:
    return 0 in shapes["task"]


def _no_query(shapes, attributes) -> bool:
    return 0 in shapes["q"][:-3]


def _bias(shapes, attributes) -> bool:
    return "bias" in shapes


def _float32_scale(shapes, attributes) -> bool:
    return float(np.float32(attributes["scaling"])) != attributes["scaling"]


def _asymmetric_or_empty(shapes, attributes) -> bool:
    return shapes["kernel"][2] > 2 or _empty(shapes, attributes)


def _no_wavelet(shapes, attributes) -> bool:
    return attributes["wavelet"] in ("db3", "coif4", "coif5")


def _one_expert(shapes, attributes) -> bool:
    return shapes["weight"][0] == 1 and attributes["layout"] == "in_out"


def _one_column(shapes, attributes) -> bool:
    return shapes["core"][-1] == 1


COVERED = {
    "lora.experts": {"peft-one-expert": _one_expert},
    "lora.experts_merge": {"peft-one-expert": _one_expert},
    "lora.conv1d": {"peft-lora-conv": _conv},
    "lora.conv2d": {"peft-lora-conv": _conv},
    "lora.conv3d": {"peft-lora-conv": _conv},
    "dora.linear": {"peft-dora-vector": _vector, "peft-boft-bias": _bias},
    "dora.conv2d": {"peft-lora-conv": _conv, "peft-boft-bias": _bias},
    "boft.linear": {"peft-boft-bias": _bias},
    "oft.linear": {"peft-oft-axes": _four_axes},
    "boft.conv2d": {"peft-square-conv": _not_square},
    "hra.conv2d": {"peft-square-conv": _not_square},
    "oft.conv2d": {"peft-oft-conv": _patches},
    "gralora.linear": {"peft-empty-batch": _empty},
    "c3a.linear_fft": {"peft-c3a": _asymmetric_or_empty},
    "lily.linear": {"peft-empty-batch": _empty},
    "bdlora.linear": {"peft-empty-batch": _empty},
    "poly.linear": {"peft-empty-batch": _no_sequence},
    "adaption_prompt.attention": {"peft-empty-batch": _no_query},
    "adamss.linear": {"peft-vector": _vector},
    "qalora.linear": {"peft-vector": _vector},
    "trainable_tokens.linear": {"peft-tokens-bias": _bias},
    "deft.linear": {"peft-deft": _bias},
    "loha.linear": {"peft-loha-scale": _float32_scale},
    "loha.merge": {"peft-loha-scale": _float32_scale},
    "loha.conv2d": {"peft-loha-scale": _float32_scale},
    "loha_core.merge": {"peft-loha-scale": _float32_scale},
    "lokr_core.conv2d": {"torch-kron": _one_column},
    "lokr_core.merge": {"torch-kron": _one_column},
    "waveft.linear": {"peft-waveft-wavelets": _no_wavelet},
    "waveft.merge": {"peft-waveft-wavelets": _no_wavelet},
}
"""Operation -> page -> whether a call, given the shapes of its inputs and its attributes, is one that the page covers."""

SINGLE, HALVES = ("float64",), ("bfloat16", "float16")

LACKING = {
    "fourierft.linear": {"peft-fourierft-float32": SINGLE},
    "fourierft.merge": {"peft-fourierft-float32": SINGLE},
    "c3a.linear_fft": {"peft-c3a": SINGLE},
    "c3a.merge_fft": {"peft-c3a": SINGLE},
    "deft.linear": {"peft-deft": (*SINGLE, *HALVES)},
    "deft.merge": {"peft-deft": SINGLE},
    "delora.linear": {"peft-delora-half": ("float16",)},
    "adaption_prompt.attention": {"peft-adaption-float32": SINGLE},
    "frod.linear": {"peft-frod-rounding": HALVES},
    "glora.linear": {"peft-glora-base": HALVES},
    "xlora.linear": {"peft-xlora-rounding": HALVES},
    "osf.linear": {"peft-xlora-rounding": HALVES},
    "psoft.linear": {"peft-psoft-rounding": HALVES},
    "lora.experts": {"peft-merge-first": HALVES},
    "hra.linear": {"peft-merge-first": HALVES},
    "loha_core.conv2d": {"peft-loha-cores": (*SINGLE, "float32", *HALVES)},
    "miss_bat.linear": {"peft-merge-first": HALVES},
    "shira.linear": {"peft-merge-first": HALVES},
    "nn.layer_norm": {"torch-layer-norm-backward": HALVES},
}
"""Operation -> page -> dtypes that it covers: float64 where peft computes in float32 inside, 16 bits where it rounds on the way.

To declare a precision for such an operation instead would loosen the base layer's product too, which is as it should be.
"""


FROZEN = {
    "boft.conv2d": ("weight",),
    "cpt.embed": ("tokens",),
    "hra.conv2d": ("weight",),
    "hra.linear": ("weight",),
    "miss_bat.linear": ("weight",),
    "randlora.linear": ("base_a",),
    "shira.linear": ("weight",),
}
"""Operation -> frozen inputs to which peft gives no gradient (``peft-base-gradient.md``), as no training asks for one."""


CONTIGUOUS = {
    **dict.fromkeys(("alora.linear", "qalora.linear"), "docs/findings/peft-views.md"),
    **dict.fromkeys(("boft.conv2d", "dora.conv2d", "hra.conv2d"), "docs/findings/peft-channels-last.md"),
    **dict.fromkeys(
        (
            *("lokr.linear", "lokr.merge", "lokr.conv2d", "lokr_core.conv2d", "lokr_core.merge"),
            *("lokr_dense.linear", "lokr_dense.merge"),
        ),
        "docs/findings/torch-kron.md",
    ),
}
"""Operation -> page on inputs that peft refuses, where they do not lie in row-major order."""


def lacking(operation: str, known: Mapping = LACKING) -> dict[str, str]:
    """Dtype -> the page that covers it."""
    return {d: f"docs/findings/{page}.md" for page, dtypes in known.get(operation, {}).items() for d in dtypes}


def covered(operation: str, known: Mapping = COVERED) -> Reason:
    """The page that covers a call, as a reason to turn it away."""
    pages: Mapping = known.get(operation, {})
    return lambda shapes, attributes: next(
        (f"docs/findings/{page}.md" for page, covers in pages.items() if covers(shapes, attributes)), ""
    )
