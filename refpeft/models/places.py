"""Places in a model, and what fits there: what stands at one, the operation that a method has for it, what it may take.

========================  ==========  ========================================================================
site                      kind        what stands there in the plain model
========================  ==========  ========================================================================
``layers.0.attn.q``       linear      ``nn.linear``; likewise k, v, o, ``mlp.gate``, ``mlp.up``, ``mlp.down``, ``head``;
                                      ``attn.qkv`` where q, k and v are one, as in GPT-2
``layers.0.attn.norm``    norm        ``nn.layer_norm``; likewise ``mlp.norm``, ``norm``, ``embedding.norm``; no RMSNorm
``layers.0.attention``    attention   ``nn.attention``
``layers.0.attn.out``     sublayer    nothing; likewise ``mlp.out``: behind the last matrix of a sublayer
``layers.0.attn.prompt``  gated       nothing: beside attention, before its last matrix; where k and v have no bias
``prompt``                prompt      nothing: in front of the embedded tokens
``embedding``             table       ``nn.embedding``
``*.shadow.inject``       shadow      nothing: in front of a block; ``update`` behind it, see `refpeft.models.shadow`
``gates``                 gates       nothing: above the last norm of a decoder's first pass, see `refpeft.models.mixture`
========================  ==========  ========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from refpeft.errors import CapabilityError, ShapeError
from refpeft.memory.decoder import ATTENTION_INPUT
from refpeft.methods import Method
from refpeft.methods.xlora import GATES
from refpeft.models import tasks
from refpeft.models.balls import PROJECTED
from refpeft.models.encoders import ENCODED
from refpeft.operation import find

KINDS = {
    "linear": ("x", "weight"),
    "norm": ("x", "weight"),
    "attention": ("q", "k", "v"),
    "gated": ("base", "q", "prompt"),
    "sublayer": ("x", "down", "up"),
    "prompt": ("x",),
    "table": ("ids", "weight"),
    "gates": ("hidden", "head"),
    "shadow": ("x", "shadow"),
}
"""Kind of a site, and the first inputs of an operation that can stand there."""

REPLACING = ("frod.linear",)
"""Operations at matrices that do not take the matrix: they make it."""

MIXING = {"xlora.gates": "xlora.linear"}
"""What makes gates, and what stands at the matrices that they are for."""

TIED = {"trainable_tokens.embedding": "trainable_tokens.linear"}
"""What stands at the head that is the table, too, for what stands at the table."""


@dataclass
class Layer:
    """What is computed at a site: y = operation(x, *arrays).

    Attributes
    ----------
    operation : str
        ``nn.linear``, or a method's ``*.linear``, and so on.
    arrays : dict of str to array
        What it takes beside what comes from below: the frozen weight, and what is trained.
    trained : tuple of str
        Those of them that get gradients.
    attributes : dict
    brought : tuple of str
        Those arrays that came with a method, frozen ones among them, but for what the method implies.
    reads : str
        Behind a sublayer: its ``output``, its ``input``, or the ``sum`` of both.
    method : Method or None
        What brought them: it says how they are kept, and which of them stay as they are.
    common : dict of str to numpy.ndarray
        Of those frozen arrays that all layers of a method share, the whole, of which the layer has its corner.
    tied : tuple of str
        Those of its arrays that other layers may train, too: all have the same ones.
    """

    operation: str
    arrays: dict[str, Any]
    trained: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    brought: tuple[str, ...] = ()
    reads: str = "output"
    method: Method | None = None
    common: dict[str, np.ndarray] = field(default_factory=dict)
    tied: tuple[str, ...] = ()


class Place(NamedTuple):
    """A site, whatever stands there.

    Attributes
    ----------
    kind : str
        Of `KINDS`.
    weight : array, or `refpeft.models.four_bit.Base`
        The matrix that a method which stands there takes its sizes and its start from.
    below : dict of str to tuple of int
        Shapes of what comes from below, for one token of one text.
    plain : Layer or None
        What stands there in the plain model.
    reads : tuple of str
        What a layer there may read, see `Layer`.
    """

    kind: str
    weight: Any
    below: dict[str, tuple[int, ...]]
    plain: Layer | None = None
    reads: tuple[str, ...] = ("output",)


def standing(method: Method) -> str:
    """The operation that stands at a site for a method.

    A block that has its norms in front has none behind its sublayers, so that with x in and h out what is left of Houlsby's
    adapter there is x + h + A(h), of Pfeiffer's x + h + A(x + h), and of a parallel one x + h + A(x).

    Raises
    ------
    CapabilityError
        If the method looks at tokens that a decoder has not read.
    """
    if method.operation.startswith("unipelt."):
        raise CapabilityError(
            f"{type(method).__name__} has a gate that looks at all tokens of a sequence, also those that a decoder has not "
            "read yet, or at an encoder's padding."
        )
    if method.operation == "adapter.sublayer":
        return "adapter.bottleneck"
    return ENCODED.get(method.operation, method.operation)


def operations(method: Method) -> set[str]:
    """All that a model calls for a method."""
    cutting = {"prefix.cut"} if method.operation == "prefix.encode" else set()
    moving = {"shadow.update"} if method.operation == "shadow.inject" else set()
    mixing = {MIXING[name] for name in {method.operation} & set(MIXING)}
    own = {standing(method)} | ({method.operation} & set(ENCODED)) | PROJECTED.get(method.operation, set())
    return own.union(cutting, moving, mixing, *(operations(other) for other in method.beside().values()))


def kind_of(operation: str) -> str | None:
    """Of the sites at which an operation can stand; None if there are none."""
    if operation in REPLACING:
        return "linear"
    ends = {"linear": ".linear", "norm": "_norm", "prompt": ".embed"}
    inputs = tuple(name for name in inputs_of(operation) if name != tasks.INPUT)
    fitting = (kind for kind, first in KINDS.items() if inputs[: len(first)] == first)
    return next((kind for kind in fitting if operation.endswith(ends.get(kind, ""))), None)


def inputs_of(operation: str) -> tuple[str, ...]:
    return tuple(a.name for a in find(operation).signature.inputs)


def require_fitting(site: str, place: Place, layer: Layer) -> None:
    """Refuse a layer that takes what a model does not give it, or whose arrays are not those of the site.

    Raises
    ------
    CapabilityError, ShapeError
    """
    operation, inputs = find(layer.operation), inputs_of(layer.operation)
    if missing := [n for n in layer.trained if n not in layer.arrays]:
        came = ", ".join(layer.brought) or "none"
        raise ShapeError(f"{site}: {layer.operation} needs {', '.join(missing)}, but {came} came.")
    if strange := [n for n in layer.arrays if n not in inputs]:
        raise ShapeError(f"{site}: {layer.operation} has no input {', '.join(strange)}.")
    mixed = layer.operation in MIXING.values()
    known = (*KINDS[place.kind], *place.below, tasks.INPUT, *layer.arrays, *([GATES] if mixed else []))
    if missing := [a.name for a in operation.signature.inputs if not a.optional and a.name not in known]:
        raise CapabilityError(f"{layer.operation} also takes {', '.join(missing)}, which a model does not give it.")
    if layer.reads not in place.reads:
        raise CapabilityError(
            f"{site}: what reads the {layer.reads} stands in a model that has its norms in front only."
        )
    shapes = {n: shape for n, shape in place.below.items() if n in inputs}
    if tasks.takes(layer.operation):
        shapes[tasks.INPUT] = shapes["x"][:-2]
    shapes |= {n: tuple(a.shape) for n, a in layer.arrays.items()}
    if mixed:
        shapes[GATES] = (*shapes["x"][:-1], shapes["a"][0])
    if place.kind == "gated" and getattr(layer.method, "gates", "") == "layer" and shapes["gate"] == (1,):
        shapes["gate"] = (place.below["q"][1],)
    try:
        operation.check_shapes(shapes, operation.check_attributes(layer.attributes))
    except ShapeError as error:
        raise ShapeError(f"{site}: {error}") from error


def require_for(chosen: Sequence[str], arrays: Mapping) -> None:
    if set(arrays) != set(chosen):
        came = ", ".join(arrays) or "none"
        raise ShapeError(f"arrays for {', '.join(chosen)} are needed, but for {came} they came.")


def place(matrix: str) -> str:
    """Where a matrix of `Decoder` stands in its layer: ``attn.q`` for ``q``."""
    return f"{'attn' if matrix in (*ATTENTION_INPUT, 'o') else 'mlp'}.{matrix}"
