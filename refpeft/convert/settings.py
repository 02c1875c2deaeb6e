"""What ``config.json`` says of dtypes, and of a 4-bit checkpoint, so that transformers loads it with bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def with_dtype(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """The configuration with the dtype of its tensors, under the name that it has for it; as it is where there is none."""
    if dtype is None:
        return dict(config)
    return {**config, **({key: dtype for key in ("dtype", "torch_dtype") if key in config} or {"torch_dtype": dtype})}


def with_quantisation(
    config: Mapping[str, Any], kind: str, double: bool, dtype: str | None, kept: Iterable[str]
) -> dict[str, Any]:
    """The configuration with a ``quantization_config``.

    Parameters
    ----------
    config : mapping
    kind : str
        nf4 or fp4.
    double : bool
        Whether the maxima are quantised as well.
    dtype : str or None
        Of the tensors that are not quantised, and of computing; the configuration's own where None.
    kept : iterable of str
        Names of matrices that are not quantised: transformers has to be told, lest it expects them to be.
    """
    stated = dtype or config.get("dtype") or config.get("torch_dtype") or "float32"
    modules = sorted({"lm_head", *(name.removesuffix(".weight") for name in kept)})
    return {
        **with_dtype(config, stated),
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": double,
            "bnb_4bit_compute_dtype": stated,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": modules,
        },
    }
