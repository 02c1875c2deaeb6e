"""Bottleneck adapters as AdapterHub saves them with ``use_safetensors``: ``adapter_config.json`` beside ``adapter.safetensors``.

Those of a decoder of Llama's type, which has its norms in front: with x what goes into a sublayer and h what comes out, an
adapter is x + h + A(h), x + h + A(x + h) or x + h + A(x), as four flags of the configuration say. What is read is understood
or refused.
A head that was saved beside the adapter is not read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refpeft.errors import AttributeValueError, CapabilityError, FormatError
from refpeft.files import atomic_write, read_json
from refpeft.formats import safetensors
from refpeft.formats.adapter import Adapter
from refpeft.formats.peft import CONFIG
from refpeft.methods import Arrays, Method
from refpeft.methods.adapter import AdapterPlus, Houlsby, ParallelAdapter, Pfeiffer, ScaledParallelAdapter

TENSORS = "adapter.safetensors"
VERSION = "adapters.1.3.0"
"""Whose form this is."""
MODULES = {"attn.out": "attention_adapters", "mlp.out": "output_adapters"}
"""A site within a layer, and the module that AdapterHub has there."""
ARRAYS = {
    "down": "adapter_down.0.weight",
    "down_bias": "adapter_down.0.bias",
    "up": "adapter_up.weight",
    "up_bias": "adapter_up.bias",
    "gain": "scaling",
}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "swish", "tanh": "tanh"}

FLAGS = ("is_parallel", "original_ln_before", "residual_before_ln", "original_ln_after")
METHODS: dict[type[Method], tuple[tuple[bool, ...], str]] = {
    Houlsby: ((False, False, True, True), ""),
    Pfeiffer: ((False, True, True, True), ""),
    AdapterPlus: ((False, True, False, False), "channel"),
    ParallelAdapter: ((True, False, True, True), ""),
    ScaledParallelAdapter: ((True, False, True, True), "learned"),
}
"""`FLAGS` of each: whether the adapter reads x, whether x is added in front of it, whether it adds to h or to that sum, and
whether x is added behind it. And what stands for a scaling that is learned.
"""
ALIKE: dict[tuple[bool, ...], tuple[bool, ...]] = {
    (False, False, False, True): (False, False, True, True),
    (True, False, False, True): (True, False, True, True),
    (False, True, False, False): (False, True, True, True),
}
"""Flags that say the same as others: x, h and A are added once each."""
_NAMED: dict[tuple[tuple[bool, ...], Any], type[Method]] = {
    (ALIKE.get(flags, flags), scaling): kind for kind, (flags, scaling) in METHODS.items()
}

INERT = (
    "cross_adapter dropout hypercomplex_nonlinearity factorized_phm_W factorized_phm_rule init_weights init_weights_seed "
    "inv_adapter_reduction_factor learn_phm leave_out mh_adapter output_adapter phm_bias phm_c_init phm_dim phm_init_range "
    "phm_rank shared_W_phm shared_phm_rule adapter_residual_before_ln stochastic_depth architecture"
)
"""Fields that say how training began and was regularised, that the tensors say again, or that mean nothing without others."""

_KEY = re.compile(r"(?:model\.)?layers\.(\d+)\.(\w+)\.adapters\.(.+?)\.(adapter_.+|scaling)")


def is_there(folder: Path) -> bool:
    """Whether a folder holds an adapter of this form."""
    return (folder / CONFIG).is_file() and "config" in read_json(folder / CONFIG)


def load(folder: str | os.PathLike[str]) -> Adapter:
    """Read an adapter.

    Raises
    ------
    FormatError
        If a file is missing or malformed, or a tensor is one too many or too few.
    CapabilityError
        If a field changes what it computes in a way that is not known here.
    """
    folder = Path(folder)
    config, archive = opened(folder)
    sites, names = ({theirs: ours for ours, theirs in table.items()} for table in (MODULES, ARRAYS))
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for key in archive:
        found = _KEY.fullmatch(key)
        if not found or found[2] not in sites or found[3] != config.get("name") or found[4] not in names:
            raise FormatError(
                f"{folder / TENSORS}: the tensor {key!r} belongs to no bottleneck adapter {config.get('name')!r}."
            )
        arrays.setdefault(f"layers.{found[1]}.{sites[found[2]]}", {})[names[found[4]]] = np.array(archive[key])
    if not arrays:
        raise FormatError(f"{folder / TENSORS}: there is no tensor, expected an adapter's.")
    method = _method(folder / CONFIG, config)
    for site, given in arrays.items():
        if set(given) != set(method.trainable):
            came = ", ".join(sorted(given))
            raise FormatError(f"{folder / TENSORS}: {site} needs {', '.join(method.trainable)}, but {came} came.")
    return Adapter(method, arrays, config)


def opened(folder: Path) -> tuple[dict[str, Any], safetensors.Lazy]:
    """The fields of an adapter whose two files are there, and its tensors.

    Raises
    ------
    FormatError
    """
    config = read_json(folder / CONFIG)
    if not (folder / TENSORS).is_file():
        raise FormatError(f"{folder} has no {TENSORS}: have AdapterHub save it with use_safetensors=True.")
    return config, safetensors.scan(folder / TENSORS)


def _method(where: Path, config: Mapping[str, Any]) -> Method:
    """The method that computes what the fields say, or why there is none."""
    own = config["config"]
    if not isinstance(own, dict):
        raise FormatError(f"{where}: config must be an object, got {json.dumps(own)}.")

    def refused(name: str) -> CapabilityError:
        return CapabilityError(f"{where}: {name} is {json.dumps(own.get(name))}, which is not understood here.")

    flags = tuple(own.get(name, False) for name in FLAGS)
    flags = ALIKE.get(flags, flags)
    if (flags, "") not in _NAMED:
        raise CapabilityError(
            f"{where}: {', '.join(f'{n} {json.dumps(own.get(n))}' for n in FLAGS)} do not add each part once."
        )
    known = {*INERT.split(), *FLAGS, "non_linearity", "reduction_factor", "scaling"}
    for name in own:
        if name not in known and own[name]:
            raise refused(name)
    activation = {theirs: ours for ours, theirs in ACTIVATIONS.items()}.get(str(own.get("non_linearity")).lower())
    if activation is None:
        raise refused("non_linearity")
    reduction, scaling = own.get("reduction_factor"), own.get("scaling")
    if isinstance(reduction, bool) or not isinstance(reduction, int | float) or reduction != int(reduction):
        raise refused("reduction_factor")
    numbers: dict[str, Any] = {"activation": activation, "reduction": int(reduction)}
    if isinstance(scaling, float):
        numbers["scaling"], scaling = scaling, ""
    kind = _NAMED.get((flags, scaling))
    if kind is None:
        raise refused("scaling")
    try:
        return kind(**numbers)
    except AttributeValueError as error:
        raise FormatError(f"{where}: {error}") from error


def is_written(adapter: Adapter) -> bool:
    """Whether this form can say the method and its sites: the same ones in every layer from the first on."""
    if type(adapter.method) not in METHODS or adapter.family != "llama":
        return False
    layers = _layers(adapter.arrays)
    alike = len({frozenset(places) for places in layers.values()}) == 1
    return alike and sorted(layers) == list(range(len(layers)))


def save(folder: str | os.PathLike[str], adapter: Adapter, base: str = "") -> None:
    """Write an adapter, the configuration last.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    adapter : Adapter
        One that `is_written`; its last layer is taken for the model's last.
    base : str
        What the configuration says of the model that it is for.
    """
    method, name = adapter.method, str(adapter.config.get("name", "refpeft"))
    flags, learned = METHODS[type(method)]
    tensors = {
        f"model.layers.{layer}.{MODULES[place]}.adapters.{name}.{ARRAYS[n]}": np.asarray(array)
        for layer, places in _layers(adapter.arrays).items()
        for place, arrays in places.items()
        for n, array in arrays.items()
    }
    places = _layers(adapter.arrays)[0]
    own = {
        "mh_adapter": "attn.out" in places,
        "output_adapter": "mlp.out" in places,
        "reduction_factor": method.reduction,  # type: ignore[attr-defined]
        "non_linearity": ACTIVATIONS[method.activation],  # type: ignore[attr-defined]
        "scaling": learned or method.scaling,  # type: ignore[attr-defined]
        "leave_out": [],
    } | dict(zip(FLAGS, flags))
    about = {
        "model_type": "llama",
        "model_class": "LlamaForCausalLM",
        "hidden_size": next(iter(places.values()))["up"].shape[0],
        "version": VERSION,
    }
    config = about | dict(adapter.config) | {"name": name, "config": dict(adapter.config.get("config", {})) | own}
    config["model_name"] = base or config.get("model_name", "")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save(folder / TENSORS, tensors, {"format": "pt"})
    atomic_write(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def _layers(arrays: Arrays) -> dict[int, dict[str, Mapping[str, np.ndarray]]]:
    """Arrays by layer and place in it."""
    found: dict[int, dict[str, Mapping[str, np.ndarray]]] = {}
    for site, its in arrays.items():
        _, layer, place = site.split(".", 2)
        found.setdefault(int(layer), {})[place] = its
    return found
