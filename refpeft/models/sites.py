"""Sites: the matrices of a model, by name, at each of which a method's layer can take the plain one's place."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from refpeft.errors import CapabilityError, ShapeError
from refpeft.methods import Method
from refpeft.models.calls import Call, Calls
from refpeft.operation import find, matches


@dataclass
class Layer:
    """What is computed at a site: y = operation(x, weight, *arrays).

    Attributes
    ----------
    operation : str
        ``nn.linear``, or a method's ``*.linear``.
    arrays : dict of str to array
        Everything but x: the frozen weight, and what is trained.
    trained : tuple of str
        Those of them that get gradients.
    attributes : dict
    """

    operation: str
    arrays: dict[str, Any]
    trained: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)


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
    """

    def __init__(self, run: Calls, device: str, dtype: np.dtype):
        self._run, self._device, self._dtype = run, device, dtype
        self.sites: dict[str, Layer] = {}

    @property
    def backend(self) -> str:
        """Its name."""
        return self._run.backend.name

    def host(self, array) -> np.ndarray:
        """An array of the model's backend as NumPy's."""
        return np.asarray(self._run.backend.to_numpy(array))

    def twin(self) -> Self:
        """The same model over the same arrays, to which a method can be attached without this one's knowing."""
        twin = copy(self)
        twin.sites = dict(self.sites)
        return twin

    def asarray(self, array: np.ndarray):
        """An array of the model's backend; numbers as the model's dtype."""
        array = np.asarray(array)
        array = array.astype(self._dtype, copy=False) if array.dtype.kind not in "bi" else array
        return self._run.backend.asarray(np.asarray(array, order="C"), self._device)

    def attach(
        self,
        pattern: str,
        method: Method,
        random: np.random.Generator | None = None,
        arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ) -> None:
        """Put a method's layer at every site that matches, in place of what is there.

        Parameters
        ----------
        pattern : str
            Shell patterns between commas, as ``layers.*.attn.q,layers.*.attn.v``.
        method : Method
            One whose operation is a layer of its own, as `refpeft.methods.LoRA`.
        random : numpy.random.Generator, optional
            What its parameters are drawn from, at each site in turn.
        arrays : mapping of site to mapping of str to array, optional
            The parameters themselves, where they are not to be drawn.

        Raises
        ------
        CapabilityError
            If the method's operation takes something else than x, a weight and its parameters.
        ShapeError
            If no site matches, or the arrays are not those of the sites that do.
        """
        inputs = [a.name for a in find(method.operation).signature.inputs]
        if inputs[:2] != ["x", "weight"]:
            raise CapabilityError(f"{method.operation} is not a linear layer: it takes {', '.join(inputs)}.")
        chosen = [site for site in self.sites if matches(site, pattern)]
        if not chosen:
            raise ShapeError(f"{pattern!r} matches none of the sites, which are {', '.join(self.sites)}.")
        if arrays is None:
            random = np.random.default_rng() if random is None else random
            arrays = {site: method.init(random, self._weight(site)) for site in chosen}
        if set(arrays) != set(chosen):
            came = ", ".join(arrays) or "none"
            raise ShapeError(f"arrays for {', '.join(chosen)} are needed, but for {came} they came.")
        for site in chosen:
            given = {name: self.asarray(a) for name, a in arrays[site].items()}
            base = {n: a for n, a in self.sites[site].arrays.items() if n in ("weight", "bias")}
            self.sites[site] = Layer(method.operation, base | given, method.trainable, method.attributes())

    @property
    def trained(self) -> dict[str, Any]:
        """What is trained, by ``SITE.ARRAY``: the arrays themselves, for an optimizer to step."""
        return {f"{site}.{n}": layer.arrays[n] for site, layer in self.sites.items() for n in layer.trained}

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """What is trained, by site, as host arrays: what `attach` takes."""
        return {
            site: {n: self.host(layer.arrays[n]) for n in layer.trained}
            for site, layer in self.sites.items()
            if layer.trained
        }

    def _weight(self, site: str) -> np.ndarray:
        return self.host(self.sites[site].arrays["weight"]).astype(np.float64)

    def _linear(self, site: str, x, keep: bool):
        layer = self.sites[site]
        return self._run.forward(layer.operation, {"x": x, **layer.arrays}, keep, **layer.attributes)

    def _linear_vjp(self, site: str, call: Call, dy, gradients: dict, further: bool):
        """The gradient to x where it goes further; those of what is trained go into ``gradients``."""
        trained = self.sites[site].trained
        found = self._run.vjp(call, dy, [*(["x"] if further else []), *trained])
        gradients.update({f"{site}.{name}": found[name] for name in trained})
        return found.get("x")


def place(matrix: str) -> str:
    """Where a matrix of `Decoder` stands in its layer: ``attn.q`` for ``q``."""
    return f"{'attn' if matrix in ('q', 'k', 'v', 'o') else 'mlp'}.{matrix}"
