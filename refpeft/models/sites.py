"""Sites: places in a model, by name, at each of which a method's layer can stand.

=====================  ==========  ==========================================================================
site                   kind        what stands there in the plain model
=====================  ==========  ==========================================================================
``layers.0.attn.q``    linear      ``nn.linear``; likewise k, v, o, ``mlp.gate``, ``mlp.up``, ``mlp.down``, ``head``
``layers.0.attention`` attention   ``nn.attention``
``layers.0.attn.out``  sublayer    nothing; likewise ``mlp.out``: behind the last matrix of a sublayer
``prompt``             prompt      nothing: in front of the embedded tokens
=====================  ==========  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np

from refpeft.errors import CapabilityError, ShapeError
from refpeft.formats.four_bit import Quantised
from refpeft.methods import Arrays, Method
from refpeft.models import encoders, starts
from refpeft.models.calls import Call, Calls
from refpeft.models.encoders import ENCODED, GIVEN, Encoder
from refpeft.models.four_bit import Base
from refpeft.operation import find, matches

KINDS = {
    "linear": ("x", "weight"),
    "attention": ("q", "k", "v"),
    "sublayer": ("x", "down", "up"),
    "prompt": ("x", "prompt"),
}
"""Kind of a site, and the first inputs of an operation that can stand there."""


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
        Those arrays that came with a method, frozen ones among them.
    """

    operation: str
    arrays: dict[str, Any]
    trained: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    brought: tuple[str, ...] = ()


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
    """

    kind: str
    weight: Any
    below: dict[str, tuple[int, ...]]


class Sites:
    """The layers of a model, on one backend.

    Parameters
    ----------
    run : Calls
    device : str
    dtype : numpy.dtype
        Of the model's numbers.

    Attributes
    ----------
    sites : dict of str to Layer
    places : dict of str to Place
        Of every site, of those too at which nothing stands.
    encoder : Encoder or None
        What computes the arrays of a reparametrised prompt or prefix.
    watch : callable or None
        Told each site and its input x before what stands there is called.
    """

    def __init__(self, run: Calls, device: str, dtype: np.dtype):
        self._run, self._device, self._dtype = run, device, dtype
        self.sites: dict[str, Layer] = {}
        self.places: dict[str, Place] = {}
        self.encoder: Encoder | None = None
        self.watch: Callable[[str, Any], None] | None = None

    @property
    def backend(self) -> str:
        """Its name."""
        return self._run.backend.name

    def host(self, array) -> np.ndarray:
        """An array of the model's backend as NumPy's; a matrix in 4 bits decoded."""
        array = array.decoded() if isinstance(array, Base) else array
        return np.asarray(self._run.backend.to_numpy(array))

    def twin(self) -> Self:
        """The same model over the same arrays, to which a method can be attached without this one's knowing."""
        twin = copy(self)
        twin.sites = dict(self.sites)
        return twin

    def asarray(self, array: np.ndarray):
        """An array of the model's backend; numbers as the model's dtype."""
        array = np.asarray(array)
        return self._put(array.astype(self._dtype, copy=False) if array.dtype.kind not in "bi" else array)

    def _put(self, array: np.ndarray):
        """An array of the model's backend, in the dtype that it has."""
        return self._run.backend.asarray(np.asarray(array, order="C"), self._device)

    def _matrix(self, weight: np.ndarray | Quantised):
        """A frozen matrix, in 4 bits where it came so."""
        return (
            Base(weight, self._run, self._put, self._dtype) if isinstance(weight, Quantised) else self.asarray(weight)
        )

    def attach(
        self,
        pattern: str,
        method: Method,
        random: np.random.Generator | None = None,
        arrays: Arrays | None = None,
        batches: Sequence[np.ndarray] = (),
    ) -> None:
        """Put a method's layer at every site of its kind that matches, in place of what is there.

        Parameters
        ----------
        pattern : str
            Shell patterns between commas, as ``layers.*.attn.q,layers.*.attn.v``; ``*`` for all sites of the kind.
        method : Method
            As `refpeft.methods.LoRA`. One with an encoder, as `refpeft.methods.PTuning`, has one for all sites.
        random : numpy.random.Generator, optional
            What its parameters are drawn from, at each site in turn.
        arrays : mapping of site to mapping of str to array, optional
            The parameters themselves, where they are not to be drawn; an encoder's under ``encoder``.
        batches : sequence of (n, s) int64
            Token ids, where the method starts from data, as `refpeft.methods.EVA`; see `refpeft.models.starts`.

        Raises
        ------
        AttributeValueError
            If it starts from data, but there are no batches.
        CapabilityError
            If the method's operation stands at no kind of site, or it brings a weight over one in 4 bits that cannot be kept so.
        ShapeError
            If no site matches, or the arrays are not those of the sites that do.
        """
        operation = standing(method)
        chosen = self._matching(pattern, operation)
        random = np.random.default_rng() if random is None else random
        if method.operation in ENCODED:
            self._encode_with(method, chosen, random, arrays)
            return
        if arrays is None:
            data = starts.collected(self, chosen, method, batches)  # type: ignore[arg-type]
            own = method.shared(data)
            chosen = list(own)
            arrays = {site: own[site].init(random, self.weight(site), **data[site]) for site in chosen}
        _require_for(chosen, arrays)
        attributes = {n: v for n, v in method.attributes().items() if n in find(operation).attributes}
        for site in chosen:
            given = {name: self.asarray(a) for name, a in arrays[site].items()}
            if "weight" in given and isinstance(base := self.places[site].weight, Base):
                given["weight"] = base.again(arrays[site]["weight"])
            self._place(site, Layer(operation, given, method.trainable, attributes, tuple(given)))

    @property
    def trained(self) -> dict[str, Any]:
        """What is trained, by ``SITE.ARRAY``: the arrays themselves, for an optimizer to step."""
        encoder = self.encoder
        found = {f"encoder.{n}": encoder.arrays[n] for n in encoder.trained} if encoder else {}
        own = {site: layer for site, layer in self.sites.items() if not (encoder and site in encoder.sites)}
        return found | {f"{site}.{n}": layer.arrays[n] for site, layer in own.items() for n in layer.trained}

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """What methods brought, by site, as host arrays, as `attach` takes them; in place of an encoder, what it gives."""
        self._encode(keep=False)
        return {
            site: {n: self.host(layer.arrays[n]) for n in layer.brought}
            for site, layer in self.sites.items()
            if layer.brought
        }

    def kept(self, method: Method) -> tuple[Method, Arrays]:
        """What is kept of a method that was trained: without its encoder, and over the weights that the model had before it.

        A weight that the method brought is kept where it was quantised again: the two differ by more than a rank then.
        """
        arrays = self.arrays()
        again = any("weight" in its and isinstance(self.places[site].weight, Base) for site, its in arrays.items())
        kept = encoders.dropped(method)
        return (kept, arrays) if again else kept.over(arrays, self.weight)

    def weight(self, site: str) -> np.ndarray:
        """The matrix of a site as the model has it, whatever stands there, in float64."""
        return self.host(self.places[site].weight).astype(np.float64)

    def bare(self, site: str) -> Layer:
        """What stands at a matrix's site in the plain model."""
        there = self.sites[site].arrays
        return Layer(
            "nn.linear", {n: a for n, a in there.items() if n == "bias"} | {"weight": self.places[site].weight}
        )

    def _matching(self, pattern: str, operation: str) -> list[str]:
        """The sites that match, of those at which the operation can stand."""
        kind = next((k for k, first in KINDS.items() if _inputs(operation)[: len(first)] == first), None)
        known = [site for site, its in self.places.items() if its.kind == kind]
        if kind is None or (kind == "linear") != operation.endswith(".linear"):
            raise CapabilityError(
                f"{operation} stands at no site of a model: it takes {', '.join(_inputs(operation))}."
            )
        if chosen := [site for site in known if matches(site, pattern)]:
            return chosen
        raise ShapeError(f"{pattern!r} matches none of the sites for {operation}, which are {', '.join(known)}.")

    def _place(self, site: str, layer: Layer) -> None:
        """Put a layer at a site, over the weight and bias that are there, if it fits."""
        below = self.bare(site).arrays if self.places[site].kind == "linear" else {}
        layer = replace(layer, arrays=below | layer.arrays)
        _require_fitting(site, self.places[site], layer)
        if self.encoder and site in self.encoder.sites:
            self.encoder = None
        self.sites[site] = layer

    def _encode_with(self, method: Method, chosen: list[str], random, arrays) -> None:
        """Have the sites' arrays encoded."""
        if arrays is None:
            arrays = {"encoder": encoders.init(method, random, self.weight(chosen[0]), len(chosen))}
        _require_for(["encoder"], arrays)
        given = {name: self.asarray(a) for name, a in arrays["encoder"].items()}
        self.encoder = Encoder(method.operation, given, method.trainable, tuple(chosen), getattr(method, "size", 0))
        operation = ENCODED[method.operation]
        for site in chosen:
            self.sites[site] = Layer(operation, {}, GIVEN[operation], brought=GIVEN[operation])

    def _encode(self, keep: bool) -> list[Call]:
        """Give the encoder's sites what it computes now; its calls."""
        if self.encoder is None:
            return []
        given, calls = self.encoder.forward(self._run, keep)
        for site, arrays in given.items():
            self.sites[site] = replace(self.sites[site], arrays=arrays)
        return calls

    def _encode_vjp(self, calls: list[Call], gradients: dict[str, Any]) -> dict[str, Any]:
        """The gradients with the encoder's in place of those to what it gave."""
        if self.encoder is None:
            return gradients
        own = self.encoder.vjp(self._run, calls, gradients, lambda g: self.asarray(np.stack([*map(self.host, g)])))
        return {n: g for n, g in gradients.items() if n.rpartition(".")[0] not in self.encoder.sites} | own

    def _call(self, site: str, inputs: Mapping[str, Any], keep: bool, **attributes):
        """The output of what stands at a site."""
        layer = self.sites[site]
        if self.watch:
            self.watch(site, inputs.get("x"))
        called = layer.operation, layer.arrays, layer.attributes
        if isinstance(base := layer.arrays.get("weight"), Base):
            called = base.under(*called)
        operation, arrays, stated = called
        return self._run.forward(operation, {**inputs, **arrays}, keep, **stated, **attributes)

    def _vjp(self, site: str, call: Call, dy, gradients: dict, wanted: Sequence[str]) -> dict[str, Any]:
        """The gradients to the inputs that are wanted; those to what is trained go into ``gradients``."""
        trained = self.sites[site].trained
        found = self._run.vjp(call, dy, [*wanted, *trained])
        gradients.update({f"{site}.{name}": found[name] for name in trained})
        return found


def standing(method: Method) -> str:
    """The operation that stands at a site for a method.

    A block that has its norms in front has none behind its sublayers, so that what is left of Houlsby's adapter there is
    h + A(h).

    Raises
    ------
    CapabilityError
        If the method freezes a part of an array.
    """
    if getattr(method, "frozen", 0):
        raise CapabilityError(
            f"{type(method).__name__} freezes tokens of its own, which training a model does not do yet."
        )
    if getattr(method, "placement", "") == "houlsby":
        return "adapter.bottleneck"
    return ENCODED.get(method.operation, method.operation)


def operations(method: Method) -> set[str]:
    """All that a model calls for a method."""
    cutting = {"prefix.cut"} if method.operation == "prefix.encode" else set()
    return {standing(method)} | ({method.operation} & set(ENCODED)) | cutting


def _inputs(operation: str) -> tuple[str, ...]:
    return tuple(a.name for a in find(operation).signature.inputs)


def _require_fitting(site: str, place: Place, layer: Layer) -> None:
    """Refuse a layer that takes what a model does not give it, or whose arrays are not those of the site.

    Raises
    ------
    CapabilityError, ShapeError
    """
    operation, inputs = find(layer.operation), _inputs(layer.operation)
    if missing := [n for n in layer.trained if n not in layer.arrays]:
        came = ", ".join(layer.brought) or "none"
        raise ShapeError(f"{site}: {layer.operation} needs {', '.join(missing)}, but {came} came.")
    if strange := [n for n in layer.arrays if n not in inputs]:
        raise ShapeError(f"{site}: {layer.operation} has no input {', '.join(strange)}.")
    known = (*KINDS[place.kind], *layer.arrays)
    if missing := [a.name for a in operation.signature.inputs if not a.optional and a.name not in known]:
        raise CapabilityError(f"{layer.operation} also takes {', '.join(missing)}, which a model does not give it.")
    shapes = {n: shape for n, shape in place.below.items() if n in inputs}
    shapes |= {n: tuple(a.shape) for n, a in layer.arrays.items()}
    try:
        operation.check_shapes(shapes, operation.check_attributes(layer.attributes))
    except ShapeError as error:
        raise ShapeError(f"{site}: {error}") from error


def _require_for(chosen: Sequence[str], arrays: Mapping) -> None:
    if set(arrays) != set(chosen):
        came = ", ".join(arrays) or "none"
        raise ShapeError(f"arrays for {', '.join(chosen)} are needed, but for {came} they came.")


def place(matrix: str) -> str:
    """Where a matrix of `Decoder` stands in its layer: ``attn.q`` for ``q``."""
    return f"{'attn' if matrix in ('q', 'k', 'v', 'o') else 'mlp'}.{matrix}"
