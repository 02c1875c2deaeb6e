"""What transformers of every kind have in common: weights on a backend, matrices at their sites, and the places of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from refpeft import plugins
from refpeft.backend import Backend
from refpeft.errors import CapabilityError, DomainError, ShapeError
from refpeft.memory.decoder import Decoder
from refpeft.models import gated
from refpeft.models.calls import Calls
from refpeft.models.places import TIED, Layer, Place
from refpeft.models.sites import Sites
from refpeft.numerics.formats import as_format
from refpeft.ops import rope

TABLES = ("embedding", "positions", "segments")


class Transformer(Sites):
    """A model of blocks, see `refpeft.models.blocks`.

    Parameters
    ----------
    shape : Decoder
        What it is made of, and in which sizes.
    weights : mapping of str to array or Quantised
        NumPy arrays of one dtype, as far as the shape has them: tables ``embedding``, ``positions`` and ``segments``; norms
        ``layers.0.attn.norm`` and ``layers.0.mlp.norm``, ``norm`` behind the last block or ``embedding.norm`` before the first;
        matrices (o, i) as ``layers.0.attn.q``, see `refpeft.models.places`, and ``head``; biases as ``layers.0.attn.q.bias``. A
        matrix may come in 4 bits, as `refpeft.formats.four_bit.Quantised`.
    eps : float
        Of the norms.
    frequencies : (d / 2,) array, optional
        Of rotary positions; plain ones of base 10,000 if they are not given, see `refpeft.ops.rope.inverse_frequencies`.
    magnitude : float
        What the cosines and sines of rotary positions are multiplied by.
    windows : sequence of int
        How many tokens, itself among them, each block lets a token see; 0 for all. All see all where it is empty.
    hidden_dropout : float
        In training, of what embeddings and sublayers give, where norms stand behind them.
    gelu : str
        Of a feed-forward layer without a gate: exact, ``none``, or by tanh.
    backend : str or Backend
    device : str
        On what it runs.
    """

    def __init__(
        self,
        shape: Decoder,
        weights: Mapping[str, Any],
        *,
        eps: float,
        frequencies: np.ndarray | None = None,
        magnitude: float = 1.0,
        windows: Sequence[int] = (),
        hidden_dropout: float = 0.0,
        gelu: Literal["none", "tanh"] = "tanh",
        backend: str | Backend = "reference",
        device: str = "",
    ):
        chosen = plugins.backend(backend)
        dtype = as_format(weights["embedding"].dtype.name).dtype
        super().__init__(Calls(chosen), device or chosen.devices()[0], dtype)
        self.shape, self.eps, self.gelu, self.windows, self._magnitude = shape, eps, gelu, windows, magnitude
        self.hidden_dropout = hidden_dropout
        self._frequencies = rope.inverse_frequencies(shape.head_size) if frequencies is None else frequencies
        arrays = {name: self._matrix(w) for name, w in weights.items()}
        if shape.tied:
            arrays.setdefault("head", arrays["embedding"])
        self.tables = {name: arrays[name] for name in TABLES if name in arrays}
        self.sites["embedding"] = Layer("nn.embedding", {"weight": arrays["embedding"]})
        for name, array in arrays.items():
            if name not in self.tables and not name.endswith(".bias"):
                own = {"weight": array} | ({"bias": arrays[f"{name}.bias"]} if f"{name}.bias" in arrays else {})
                self.sites[name] = self._norm(own) if name.endswith("norm") else Layer("nn.linear", own)
        self.places = self._places()
        for i in range(shape.layers):
            self.sites[f"layers.{i}.attention"] = self.bare(f"layers.{i}.attention")

    def _norm(self, own: dict[str, Any]) -> Layer:
        """x over its root mean square, or, where norms are centred, LayerNorm; with a gain, and a bias if there is one."""
        return Layer("nn.layer_norm" if self.shape.centred else "nn.rms_norm", own, attributes={"eps": self.eps})

    def _places(self) -> dict[str, Place]:
        """Where methods can stand."""
        shape, token = self.shape, (1, 1, self.shape.width)
        keys = (1, shape.kv_heads, 1, shape.head_size)
        heads = {"q": (1, shape.heads, 1, shape.head_size), "k": keys, "v": keys}
        places = {"prompt": Place("prompt", self.tables["embedding"], {"x": token})}
        for site, layer in self.sites.items():
            weight = layer.arrays["weight"]
            if layer.operation == "nn.embedding":
                places[site] = Place("table", weight, {"ids": (1, 1)}, layer)
            elif layer.operation != "nn.rms_norm":
                kind = "linear" if layer.operation == "nn.linear" else "norm"
                places[site] = Place(kind, weight, {"x": (1, weight.shape[-1])}, layer)
        attend = Layer("nn.attention", {}, attributes={"scale": shape.head_size**-0.5})
        as_wide_as_keys = "o" if shape.fused else "k"
        for at in (f"layers.{i}" for i in range(shape.layers)):
            weight = places[f"{at}.attn.{as_wide_as_keys}"].weight
            places[f"{at}.attention"] = Place("attention", weight, dict(heads), attend)
            for site, last in (("attn.out", "attn.o"), ("mlp.out", "mlp.down")):
                weight = places[f"{at}.{last}"].weight
                reads = ("output", "input") if shape.post else ("output", "input", "sum")
                places[f"{at}.{site}"] = Place("sublayer", weight, {"x": token, "residual": token}, reads=reads)
        return places | gated.places(self)

    def _place(self, site: str, layer: Layer) -> None:
        """A head that is the table trains what the table does.

        Raises
        ------
        CapabilityError
            If it has a method of its own.
        """
        other = {"embedding": "head", "head": "embedding"}.get(site)
        if self.shape.tied and other and self.sites[other].method is not None:
            name = type(self.sites[other].method).__name__
            raise CapabilityError(f"{site} is {other}'s matrix in {self.shape.name}, where {name} stands already.")
        super()._place(site, layer)
        if site == "embedding" and self.shape.tied and (operation := TIED.get(layer.operation)):
            self.sites["head"] = Layer(operation, self.sites[site].arrays, layer.trained, tied=layer.trained)

    def through(self, ids: np.ndarray) -> None:
        """A pass of token ids (n, s) through the model, whose sites may be watched."""
        raise NotImplementedError

    def looked_up(self, table: str, ids: np.ndarray):
        """The rows of a table, (*n, d)."""
        inputs = {"ids": self.asarray(ids), "weight": self.tables[table]}
        return self.run.forward("nn.embedding", inputs, False)[0]

    def positioned(self, x, start: int):
        """x with the rows of the table of positions from ``start`` on.

        Raises
        ------
        DomainError
            If there are not so many.
        """
        stop = start + x.shape[1]
        self.require_positions(stop)
        return x + self.looked_up("positions", np.arange(start, stop))

    def require_positions(self, count: int) -> None:
        """Refuse more tokens than there are positions in a table.

        Raises
        ------
        DomainError
        """
        if self.shape.positions:
            self.shape.require_positions(count)

    def turns(self, start: int, count: int) -> dict[str, Any]:
        """Cosines and sines of rotary positions from ``start`` on."""
        angles = rope.angles(np.arange(start, start + count), self._frequencies)
        cos, sin = self._magnitude * np.cos(angles), self._magnitude * np.sin(angles)
        return {"cos": self.asarray(cos), "sin": self.asarray(sin)}

    def prefixed(self) -> int:
        """How many tokens a prefix puts in front."""
        prefix = self.sites["layers.0.attention"].arrays.get("prefix_k") if self.shape.layers else None
        return 0 if prefix is None else prefix.shape[-2]

    def checked(self, ids, table: str = "embedding") -> np.ndarray:
        """Ids (n, s) of rows of a table.

        Raises
        ------
        ShapeError, DomainError
            If they are none.
        """
        ids, kind = np.asarray(ids), "token" if table == "embedding" else "segment"
        count = self.shape.vocabulary if table == "embedding" else self.shape.segments
        if ids.ndim != 2 or ids.dtype.kind != "i":
            raise ShapeError(f"{kind} ids are integers of shape (n, s), but {ids.dtype} of shape {ids.shape} came.")
        if ids.size and not (ids.min() >= 0 and ids.max() < count):
            raise DomainError(f"{kind} ids lie from 0 to {count - 1}, but {ids.min()} to {ids.max()} came.")
        return ids.astype(np.int64)
