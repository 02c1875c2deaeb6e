"""Sites: a model's places by name, see `refpeft.models.places`, at each of which a method's layer can stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np

from refpeft.backend import Backend
from refpeft.errors import CapabilityError, ShapeError
from refpeft.formats.four_bit import Quantised
from refpeft.methods import Arrays, Method
from refpeft.methods.shadow import Shadow
from refpeft.models import balls, common, encoders, gated, mixture, read_text, shadow, starts, tasks
from refpeft.models.calls import Call, Calls
from refpeft.models.dropout import Dropout, drops
from refpeft.models.encoders import ENCODED, GIVEN, Encoder
from refpeft.models.four_bit import Base
from refpeft.models.places import (
    MIXING,
    REPLACING,
    Layer,
    Place,
    inputs_of,
    kind_of,
    require_fitting,
    require_for,
    standing,
)
from refpeft.operation import find, matches

FROZEN = ("ids", tasks.INPUT, "weight_k", "weight_v")
"""What comes to a site from the model and gets no gradient."""


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
    run : Calls
        The backend's operations.
    watch : callable or None
        Told each site and its input x before what stands there is called.
    dropout : Dropout or None
        Of the pass that is under way.
    tasks : (n,) int64 or None
        Of the texts of that pass.
    """

    def __init__(self, run: Calls, device: str, dtype: np.dtype):
        self.run, self._device, self._dtype = run, device, dtype
        self.sites: dict[str, Layer] = {}
        self.places: dict[str, Place] = {}
        self.encoder: Encoder | None = None
        self.watch: Callable[[str, Any], None] | None = None
        self.dropout: Dropout | None = None
        self.tasks: np.ndarray | None = None

    @property
    def backend(self) -> Backend:
        """On what it runs."""
        return self.run.backend

    @property
    def device(self) -> str:
        """Where its arrays are."""
        return self._device

    def host(self, array) -> np.ndarray:
        """An array of the model's backend as NumPy's; a matrix in 4 bits decoded."""
        array = array.decoded() if isinstance(array, Base) else array
        return np.asarray(self.run.backend.to_numpy(array))

    @property
    def operations(self) -> set[str]:
        """The operations that stand at its sites."""
        return {layer.operation for layer in self.sites.values()}

    def twin(self) -> Self:
        """The same model over the same arrays, to which a method can be attached without this one's knowing."""
        twin = copy(self)
        twin.sites = dict(self.sites)
        return twin

    def told(self, given: np.ndarray | None, count: int) -> Self:
        """The same model in a pass over so many texts, of the tasks that are given."""
        if given is None:
            return self
        told = copy(self)
        told.tasks = tasks.checked(given, count)
        return told

    def asarray(self, array: np.ndarray):
        """An array of the model's backend; numbers as the model's dtype."""
        array = np.asarray(array)
        return self._put(array.astype(self._dtype, copy=False) if array.dtype.kind not in "bi" else array)

    def joined(self, arrays: Sequence, axis: int):
        """Arrays of the model's backend, one behind the other along an axis, by way of the host."""
        return self.asarray(np.concatenate([self.host(array) for array in arrays], axis=axis))

    def _put(self, array: np.ndarray):
        """An array of the model's backend, in the dtype that it has."""
        return self.run.backend.asarray(np.asarray(array, order="C"), self._device)

    def _matrix(self, weight: np.ndarray | Quantised):
        """A frozen matrix, in 4 bits where it came so."""
        return Base(weight, self.run, self._put, self._dtype) if isinstance(weight, Quantised) else self.asarray(weight)

    def attach(
        self,
        pattern: str,
        method: Method,
        random: np.random.Generator | None = None,
        arrays: Arrays | None = None,
        batches: Sequence[starts.Batch] = (),
        text: Sequence[int] = (),
    ) -> None:
        """Put a method's layer at every site of its kind that matches, in place of what is there.

        Parameters
        ----------
        pattern : str
            Shell patterns between commas, as ``layers.*.attn.q,layers.*.attn.v``; ``*`` for all sites of the kind.
        method : Method
            As `refpeft.methods.LoRA`. One with an encoder, as `refpeft.methods.PTuning`, has one for all sites.
        random : numpy.random.Generator, optional
            What its parameters are drawn from, what layers share first, then at each site in turn.
        arrays : mapping of site to mapping of str to array, optional
            The parameters themselves, where they are not to be drawn; an encoder's under ``encoder``. What the method implies,
            see `Method.implied`, need not be among them; what layers share may be larger than a site needs.
        batches : sequence of (n, s) int64
            Token ids, where the method starts from data, as `refpeft.methods.EVA`; or what a classifier's `loss` takes, by name:
            see `refpeft.models.starts`.
        text : sequence of int
            Token ids, where a prompt or a prefix is to start from a text; see `refpeft.models.read_text`.

        Raises
        ------
        AttributeValueError
            If it starts from data, but there are no batches.
        CapabilityError
            If the method's operation stands at no kind of site, it brings a weight over one in 4 bits that cannot be kept so, or
            a text came from which it does not start.
        ShapeError
            If no site matches, or the arrays are not those of the sites that do.
        """
        operation, came = standing(method), arrays is not None
        random = np.random.default_rng() if random is None else random
        if len(text):
            read_text.require_startable(method)
        for sites, other in method.beside().items():
            its = None if arrays is None else {site: a for site, a in arrays.items() if matches(site, sites)}
            self.attach(sites if its is None else ",".join(its), other, random, its)
            arrays = None if arrays is None or its is None else {s: a for s, a in arrays.items() if s not in its}
        if method.operation in MIXING:
            mixture.attach(self, pattern, method, random, arrays)  # type: ignore[arg-type]
            return
        if isinstance(method, Shadow):
            shadow.attach(self, method, random, arrays)  # type: ignore[arg-type]
            return
        chosen = self._matching(pattern, operation)
        if method.operation in ENCODED:
            self._encode_with(method, chosen, random, arrays, text)
            return
        if arrays is None:
            data = starts.collected(self, chosen, method, batches)  # type: ignore[arg-type]
            own = method.shared(data)
            chosen = list(own)
            arrays = common.drawn(self, chosen, method, random, self._dtype) or {
                site: own[site].init(random, self.weight(site), **data[site]) for site in chosen
            }
            arrays = {site: {**drawn, **self._own(site, operation, drawn)} for site, drawn in arrays.items()}
            arrays = read_text.started(self, chosen, method, arrays, text) if len(text) else arrays  # type: ignore[arg-type]
        require_for(chosen, arrays)
        if kind_of(operation) == "gated":
            gated.require_uppermost(self, chosen)
        arrays = common.joined(method, arrays, drawn=not came)
        kept, corners = arrays, common.corners(self, method, arrays)
        arrays = {site: method.unpacked(tuple(self.places[site].weight.shape), its) for site, its in arrays.items()}
        attributes = {n: v for n, v in method.attributes().items() if n in find(operation).attributes}
        for site in chosen:
            shared, base = corners[site], self.places[site].weight
            brought, implied = common.parted(self, site, method, arrays[site], drawn=not came)
            given = {n: shared[n] if n in shared else self.asarray(a) for n, a in (implied | brought).items()}
            if "weight" in given and isinstance(base, Base):
                given["weight"] = base.again((implied | brought)["weight"])
            reads, tied = getattr(method, "reads", "output"), tuple(n for n in shared if n in method.trainable)
            whole = {n: kept[site][n] for n in shared if n not in tied}
            layer = Layer(operation, given, method.trainable, attributes, tuple(brought), reads, method, whole, tied)
            self._place(site, layer)

    @property
    def trained(self) -> dict[str, Any]:
        """What is trained, by ``SITE.ARRAY``: the arrays themselves, for an optimizer to step."""
        encoder = self.encoder
        found = {f"encoder.{n}": encoder.arrays[n] for n in encoder.trained} if encoder else {}
        given = encoder.sites if encoder else ()
        own = {site: layer for site, layer in self.sites.items() if site not in given}
        return found | {self._key(site, n): layer.arrays[n] for site, layer in own.items() for n in layer.trained}

    def _key(self, site: str, name: str) -> str:
        """``SITE.ARRAY`` of what is trained at a site; of an array that several train, by the first."""
        layer = self.sites[site]
        if name in layer.tied:
            array = layer.arrays[name]
            site = next(first for first, its in self.sites.items() if its.arrays.get(name) is array)
        return f"{site}.{name}"

    def trains(self, prefix: str = "") -> bool:
        """Whether anything is trained at the sites whose names begin so."""
        return any(layer.trained for site, layer in self.sites.items() if site.startswith(prefix))

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """What methods brought, by site, as host arrays, as `attach` takes them; in place of an encoder, what it gives.

        They are as they are kept: what layers share is whole, and what a method implies is left out, see `Method.implied` and
        `Method.packed`.
        """
        self._encode(keep=False)
        found: dict[str, dict[str, np.ndarray]] = {}
        hosts: dict[int, np.ndarray] = {}
        for site, layer in self.sites.items():
            if layer.brought:
                hosts |= {id(a): self.host(a) for n in layer.brought if id(a := layer.arrays[n]) not in hosts}
                arrays = {n: hosts[id(layer.arrays[n])] for n in layer.brought}
                shape = tuple(self.places[site].weight.shape)
                found[site] = (layer.method.packed(shape, arrays) if layer.method else arrays) | layer.common
        return found

    def kept(self, method: Method) -> tuple[Method, Arrays]:
        """What is kept of a method that was trained: without its encoder, and over the weights that the model had before it.

        A weight that the method brought is kept where it was quantised again: the two differ by more than a rank then.
        """
        arrays = self.arrays()
        again = any("weight" in its and isinstance(self.places[site].weight, Base) for site, its in arrays.items())
        kept = encoders.dropped(method)
        return (kept, arrays) if again else kept.over(arrays, self.weight)

    def weight(self, site: str) -> np.ndarray:
        """The matrix of a site as the model has it, whatever stands there, in float64; a table is not copied."""
        array = self.host(self.places[site].weight)
        return array if self.places[site].kind in ("prompt", "table") else array.astype(np.float64)

    def bare(self, site: str) -> Layer:
        """What stands at a site of a matrix, a norm or attention in the plain model."""
        plain = self.places[site].plain
        assert plain is not None, f"nothing stands at {site} in the plain model"
        return plain

    def _matching(self, pattern: str, operation: str) -> list[str]:
        """The sites that match, of those at which the operation can stand."""
        kind = kind_of(operation)
        known = [site for site, its in self.places.items() if its.kind == kind]
        if not known:
            raise CapabilityError(
                f"{operation} stands at no site of a model: it takes {', '.join(inputs_of(operation))}."
            )
        if chosen := [site for site in known if matches(site, pattern)]:
            return chosen
        raise ShapeError(f"{pattern!r} matches none of the sites for {operation}, which are {', '.join(known)}.")

    def _place(self, site: str, layer: Layer) -> None:
        """Put a layer at a site, over the weight and bias that are there, if it fits; an epsilon is the norm's own."""
        plain = self.places[site].plain
        if plain is not None:
            same = plain.attributes if layer.operation == plain.operation else {}
            own = {n: a for n, a in plain.arrays.items() if n != "weight" or layer.operation not in REPLACING}
            layer = replace(layer, arrays=own | layer.arrays, attributes=layer.attributes | same)
        require_fitting(site, self.places[site], layer)
        if self.encoder and site in self.encoder.sites:
            self.encoder = None
        self.sites[site] = layer

    def _own(self, site: str, operation: str, drawn: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The plain layer's own arrays in place of drawn ones, where a method trains that layer itself, as BitFit does."""
        plain = self.places[site].plain
        if plain is None or plain.operation != operation:
            return {}
        return {name: self.host(array) for name, array in plain.arrays.items() if name in drawn}

    def _encode_with(self, method: Method, chosen: list[str], random, arrays, text) -> None:
        """Have the sites' arrays encoded."""
        if arrays is None:
            arrays = {"encoder": encoders.init(method, random, self.weight(chosen[0]), len(chosen))}
            arrays = read_text.started(self, chosen, method, arrays, text) if len(text) else arrays  # type: ignore[arg-type]
        require_for(["encoder"], arrays)
        given = {name: self.asarray(a) for name, a in arrays["encoder"].items()}
        self.encoder = Encoder(method.operation, given, method.trainable, tuple(chosen), getattr(method, "size", 0))
        operation = ENCODED[method.operation]
        for site in chosen:
            self.sites[site] = Layer(operation, {}, GIVEN[operation], brought=GIVEN[operation])

    def _encode(self, keep: bool) -> list[Call]:
        """Give the encoder's sites what it computes now; its calls. What has left its ball goes back."""
        balls.settle(self)
        if self.encoder is None:
            return []
        given, calls = self.encoder.forward(self.run, keep)
        for site, arrays in given.items():
            self.sites[site] = replace(self.sites[site], arrays=arrays)
        return calls

    def _encode_vjp(self, calls: list[Call], gradients: dict[str, Any]) -> dict[str, Any]:
        """The gradients with the encoder's in place of those to what it gave."""
        if self.encoder is None:
            return gradients
        own = self.encoder.vjp(self.run, calls, gradients, lambda g: self.asarray(np.stack([*map(self.host, g)])))
        return {n: g for n, g in gradients.items() if n.rpartition(".")[0] not in self.encoder.sites} | own

    def call(self, site: str, inputs: Mapping[str, Any], keep: bool, **attributes):
        """The output of what stands at a site."""
        layer = self.sites[site]
        if self.watch:
            self.watch(site, inputs.get("x"))
        if tasks.takes(layer.operation):
            given = tasks.required(site, layer.operation, layer.method, self.tasks)
            inputs = {**inputs, tasks.INPUT: self.asarray(given)}
        called = layer.operation, layer.arrays, layer.attributes
        if self.dropout is not None and drops(layer.operation):
            dropout = self.dropout.at(getattr(layer.method, "dropout", self.dropout.rate))
            if dropout.rate:
                *tokens, width = inputs["x"].shape
                each = (len(layer.arrays["a"]),) if layer.operation in MIXING.values() else ()
                mask = {"mask": self.asarray(dropout.mask(site, (*tokens, *each, width)))}
                called = layer.operation, layer.arrays | mask, layer.attributes | {"keep": 1 - dropout.rate}
        if isinstance(base := layer.arrays.get("weight"), Base):
            called = base.under(*called)
        operation, arrays, stated = called
        arrays = gated.spread(layer, arrays, inputs["q"].shape[1]) if gated.one_gate(layer) else arrays
        wanted = keep and (*(name for name in inputs if name not in FROZEN), *layer.trained)
        return self.run.forward(operation, {**inputs, **arrays}, wanted, **stated, **attributes)

    def vjp(self, site: str, call: Call, dy, gradients: dict, wanted: Sequence[str]) -> dict[str, Any]:
        """The gradients to the inputs that are wanted; those to what is trained are added up in ``gradients``."""
        layer = self.sites[site]
        found = self.run.vjp(call, dy, [*wanted, *layer.trained])
        for name in layer.trained:
            key, gradient = self._key(site, name), found[name]
            if frozen := getattr(layer.method, "frozen", 0):
                gradient = gradient * self.asarray(np.arange(gradient.shape[-2])[:, None] >= frozen)
            if gated.one_gate(layer) and name == gated.GATE:
                gradient = gradient.sum().reshape(1)
            gradients[key] = gradients[key] + gradient if key in gradients else gradient
        return found
