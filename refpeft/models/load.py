"""Models from files: a Hugging Face folder, or GGUF."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence

import numpy as np

from refpeft import plugins
from refpeft.backend import Backend
from refpeft.convert.quantise import Settings
from refpeft.convert.source import Tensor, open_model
from refpeft.errors import CapabilityError, FormatError
from refpeft.files import understood
from refpeft.formats.bitsandbytes_state import DTYPES
from refpeft.formats.four_bit import Quantised
from refpeft.formats.four_bit import quantise as quantised
from refpeft.formats.names import FAMILIES, HEAD
from refpeft.memory.decoder import Decoder
from refpeft.memory.models import from_config
from refpeft.models.features import features, rate
from refpeft.models.head import head_of
from refpeft.models.language import LanguageModel
from refpeft.models.places import place
from refpeft.models.text_classifier import TextClassifier, drawn
from refpeft.models.text_encoder import TextEncoder
from refpeft.numerics.formats import FORMATS, as_format


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    quantise: Settings | None = None,
    backend: str = "torch",
    device: str = "",
) -> LanguageModel:
    """The decoder in a Hugging Face folder (``config.json`` and safetensors, sharded or not) or a GGUF file.

    A checkpoint of bitsandbytes in 4 bits stays in them.

    Parameters
    ----------
    path : path-like
    dtype : str
        What its weights are rounded to.
    quantise : refpeft.convert.quantise.Settings, optional
        Keep the matrices of its blocks in 4 bits, as `refpeft.models.four_bit` has them.
    backend, device : str
        On what it runs.

    Raises
    ------
    FormatError
        If there is no such model, a tensor is missing or has another shape than the configuration says, or it is to be quantised
        and is already.
    CapabilityError
        If it is an encoder, or one of its features is not computed.
    """
    shape, weights, stated = _read(path, dtype, quantise, plugins.backend(backend))
    if not shape.causal:
        raise CapabilityError(
            f"{path} is an encoder, which predicts no tokens: with --task classification it gets a classifier, "
            "and in Python refpeft.models.load_encoder and load_classifier read it."
        )
    return LanguageModel(shape, weights, **stated, backend=backend, device=device)


def load_encoder(
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    quantise: Settings | None = None,
    backend: str = "torch",
    device: str = "",
) -> TextEncoder:
    """The encoder of BERT's kind in a Hugging Face folder; as for `load`."""
    shape, weights, stated = _read(path, dtype, quantise, plugins.backend(backend))
    if shape.causal:
        raise CapabilityError(f"{path} is a decoder, expected an encoder: refpeft.models.load reads it.")
    return TextEncoder(shape, weights, **stated, backend=backend, device=device)


def load_classifier(
    path: str | os.PathLike[str],
    *,
    labels: int = 0,
    train: Sequence[str] = tuple(HEAD),
    random: np.random.Generator | None = None,
    dtype: str = "float32",
    quantise: Settings | None = None,
    backend: str = "torch",
    device: str = "",
) -> TextClassifier:
    """The encoder of BERT's kind in a Hugging Face folder with a classifier above it; as for `load`.

    Parameters
    ----------
    labels : int
        How many there are; as many as the folder's classifier has where 0.
    train : sequence of str
        What of the head is trained, of ``pooler`` and ``classifier``; peft trains the classifier alone.
    random : numpy.random.Generator, optional
        What the pooler and the classifier are drawn from, where the folder has none.

    Raises
    ------
    FormatError
        If the folder's classifier has other labels, or there is none and nothing says how many.
    CapabilityError
        If it is a decoder, or there is one label only: its loss is always 0, and transformers takes it for a regression.
    """
    shape, weights, stated = _read(path, dtype, quantise, plugins.backend(backend))
    if shape.causal:
        raise CapabilityError(f"{path} is a decoder, expected an encoder: refpeft.models.load reads it.")
    random = np.random.default_rng() if random is None else random
    source, wanted = open_model(path, four_bit=True), as_format(dtype).dtype
    known = len(head_of(path, source).labels)
    if labels < 0 or known not in (0, labels or known) or not (labels or known):
        raise FormatError(f"{path}: its classifier has {known or 'no'} labels, but {labels or 'none'} are asked for.")
    if (labels or known) == 1:
        raise CapabilityError(f"{path}: a classifier of one label has nothing to tell apart, expected two at least.")
    for name, outputs in (("pooler", shape.width), ("classifier", labels or known)):
        own = drawn(random, outputs, shape.width)
        for end, drew in zip(("", ".bias"), own):
            tensor = source.tensors.get(f"{HEAD[name]}{end or '.weight'}")
            if tensor is not None and tensor.shape != drew.shape:
                raise FormatError(f"{path}: {name}{end} has shape {tensor.shape}, expected {drew.shape}.")
            weights[f"{name}{end}"] = drew.astype(wanted) if tensor is None else tensor.whole(wanted)
    stated["classifier_dropout"] = rate(path, source.config or {}, "classifier_dropout", stated["hidden_dropout"])
    return TextClassifier(shape, weights, **stated, train=train, backend=backend, device=device)


def _read(path: str | os.PathLike[str], dtype: str, quantise: Settings | None, backend: Backend):
    """Shape, weights, and what else a model takes by name."""
    source = open_model(path, four_bit=True)
    if source.config is None:
        raise FormatError(f"{path}: a model needs its config.json beside its weights.")
    shape = from_config(source.config, os.fspath(path))
    FAMILIES[shape.family].require_layers(path, source.tensors, shape.layers)
    with understood(path):
        stated = features(path, source.config, shape)
    wanted = as_format(dtype).dtype
    matrices = {f"layers.{i}.{place(m.site)}": (m.o, m.i) for i in range(shape.layers) for m in shape.matrices()}
    rows = {
        "embedding": shape.vocabulary,
        "head": shape.vocabulary,
        "positions": shape.positions,
        "segments": shape.segments,
    }
    tables = {name: (count, shape.width) for name, count in rows.items()}
    weights: dict[str, np.ndarray | Quantised] = {}
    for name, theirs in _names(shape):
        if theirs not in source.tensors:
            raise FormatError(
                f"{path}: there is no tensor {theirs!r}, expected the {name} of a model of {shape.layers} layers."
            )
        tensor = source.tensors[theirs]
        expected = (
            matrices.get(name) or tables.get(name) or matrices.get(name.removesuffix(".bias"), (shape.width,))[:1]
        )
        if tensor.shape != expected:
            raise FormatError(f"{path}: {name} has shape {tensor.shape}, expected {expected}.")
        if tensor.dtype.name not in FORMATS:
            raise FormatError(f"{path}: {theirs} is of {tensor.dtype}, expected floating-point numbers.")
        if tensor.four_bit and quantise:
            raise FormatError(f"{path}: {name} is in 4 bits already, expected floating-point numbers to quantise.")
        if tensor.four_bit and name in matrices:
            weights[name] = tensor.four_bit()
        elif quantise and name in matrices:
            weights[name] = _quantised(tensor, wanted, quantise, backend)
        else:
            weights[name] = array = tensor.whole(wanted)
            if array.size and not (math.isfinite(array.min()) and math.isfinite(array.max())):
                raise FormatError(f"{path}: {theirs} has an element that is not finite in {dtype}.")
    return shape, weights, stated


def _quantised(tensor: Tensor, dtype: np.dtype, settings: Settings, backend: Backend) -> Quantised:
    """All of a tensor in 4 bits; what is decoded of it is as wide as its model, but float32 at most."""
    decoded = dtype.name if dtype.name in DTYPES else "float32"
    pieces = (piece.astype(dtype) for piece in tensor.pieces())
    kind, blocksize, double = settings.kind, settings.blocksize, settings.double
    return quantised(
        pieces, tensor.shape, kind=kind, blocksize=blocksize, double=double, dtype=decoded, backend=backend
    )


def _names(shape: Decoder) -> Iterator[tuple[str, str]]:
    """Our name of every tensor, and the one that transformers has."""
    names = FAMILIES[shape.family]
    matrices = {place(m.site): m.bias for m in shape.matrices()}
    biased = {"norm": shape.centred} | dict.fromkeys(names.norms, shape.centred) | matrices
    blocks = [f"layers.{i}.{part}" for i in range(shape.layers) for part in (*names.norms, *matrices)]
    for part in [part for part in names.top if not (part == "head" and shape.tied)] + blocks:
        yield part, f"{names.module(part)}.weight"
        if biased.get(part.split(".", 2)[-1]):
            yield f"{part}.bias", f"{names.module(part)}.bias"
