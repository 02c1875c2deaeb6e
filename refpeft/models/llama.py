"""A decoder of Llama's type (Touvron et al. 2023, arXiv:2302.13971), forward and backward as a sequence of operations.

    x = E[ids]
    in each block    x = x + O attention(turn(Q n), turn(K n), V n)    n = norm(x)
                     x = x + D swiglu(G n, U n)                        n = norm(x)
    logits = H norm(x)

Every step is an operation of the catalogue, called through a backend, so that a model runs on any that is certified. Methods
stand at *sites*, see `refpeft.models.places`: at matrices, in attention, behind sublayers, in front of the tokens.

A prefix's keys are not turned, and the input's tokens are counted from behind it, as transformers has it with a cache; a prompt's
tokens are tokens, counted from 0. Neither is predicted, and the first of the input is not predicted from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refpeft import plugins
from refpeft.errors import CapabilityError, DomainError, ShapeError
from refpeft.memory.decoder import Decoder
from refpeft.models.calls import Call, Calls
from refpeft.models.places import Layer, Place, place
from refpeft.models.sites import Sites
from refpeft.numerics.formats import as_format
from refpeft.ops import prompt, rope


class Block(NamedTuple):
    """The calls of one block's forward, by name; or its input alone, where they are to be made again."""

    input: Any
    calls: dict[str, Call]


class Llama(Sites):
    """A decoder.

    Parameters
    ----------
    shape : Decoder
        Sizes of its matrices.
    weights : mapping of str to array or Quantised
        ``embedding``, ``norm``, ``head`` unless it is tied, and for each layer ``layers.0.attn.norm``, ``.attn.q``, ``.attn.k``,
        ``.attn.v``, ``.attn.o``, ``.mlp.norm``, ``.mlp.gate``, ``.mlp.up``, ``.mlp.down``: NumPy arrays of one dtype, matrices as
        (o, i). A matrix may have a bias, ``layers.0.attn.q.bias``, and may come in 4 bits, as
        `refpeft.formats.four_bit.Quantised`.
    eps : float
        Of the norms.
    frequencies : (d / 2,) array, optional
        Of the rotary positions; plain ones of base 10,000 if they are not given, see `refpeft.ops.rope.inverse_frequencies`.
    backend, device : str
        On what it runs.

    Raises
    ------
    CapabilityError
        If the shape is not that of Llama's family.
    """

    def __init__(
        self,
        shape: Decoder,
        weights: Mapping[str, Any],
        *,
        eps: float,
        frequencies: np.ndarray | None = None,
        backend: str = "reference",
        device: str = "",
    ):
        if shape.fused or shape.centred or not shape.gated or shape.positions:
            raise CapabilityError(f"{shape.name}: a decoder of Llama's type is expected, but its shape is another's.")
        self.shape, self.eps = shape, eps
        self._frequencies = rope.inverse_frequencies(shape.head_size) if frequencies is None else frequencies
        chosen = plugins.backend(backend)
        dtype = as_format(weights["embedding"].dtype.name).dtype
        super().__init__(Calls(chosen), device or chosen.devices()[0], dtype)
        arrays = {name: self._matrix(w) for name, w in weights.items()}
        arrays.setdefault("head", arrays["embedding"])
        self._norms = {n: a for n, a in arrays.items() if n.endswith("norm")}
        self._table = arrays["embedding"]
        for name, array in arrays.items():
            if name not in self._norms and name != "embedding" and not name.endswith(".bias"):
                bias = {"bias": arrays[f"{name}.bias"]} if f"{name}.bias" in arrays else {}
                self.sites[name] = Layer("nn.linear", {"weight": array} | bias)
        self.places = self._places()
        for i in range(shape.layers):
            self.sites[f"layers.{i}.attention"] = Layer("nn.attention", {}, attributes={"scale": shape.head_size**-0.5})

    def _places(self) -> dict[str, Place]:
        """Where methods can stand."""
        weights, shape = {site: layer.arrays["weight"] for site, layer in self.sites.items()}, self.shape
        token, keys = (1, 1, shape.width), (1, shape.kv_heads, 1, shape.head_size)
        heads = {"q": (1, shape.heads, 1, shape.head_size), "k": keys, "v": keys}
        places = {site: Place("linear", w, {"x": (1, w.shape[1])}) for site, w in weights.items()}
        places["prompt"] = Place("prompt", self._table, {"x": token})
        for layer in (f"layers.{i}" for i in range(shape.layers)):
            places[f"{layer}.attention"] = Place("attention", weights[f"{layer}.attn.k"], dict(heads))
            for site, last in (("attn.out", "attn.o"), ("mlp.out", "mlp.down")):
                below = {"x": token, "residual": token}
                places[f"{layer}.{site}"] = Place("sublayer", weights[f"{layer}.{last}"], dict(below))
        return places

    def logits(self, ids: np.ndarray, cache: list | None = None, last: bool = False):
        """Logits (n, s, v) of token ids (n, s), as the backend's array.

        Parameters
        ----------
        ids : (n, s) int64
        cache : list, optional
            Keys and values of the tokens before, empty at first; those of ``ids`` are put behind them.
        last : bool
            Whether only those behind the last token are wanted, (n, 1, v).
        """
        ids = self._checked(ids)
        self._encode(keep=False)
        return self._forward(ids, keep=False, cache=cache, last=last)[0][:, -ids.shape[1] :]

    def loss(self, ids: np.ndarray, mask: np.ndarray | None = None, checkpointing: bool = False):
        """The mean cross-entropy of each next token, and its gradients.

        Parameters
        ----------
        ids : (n, s) int64
        mask : (n, s - 1) bool, optional
            Which of the predicted tokens count.
        checkpointing : bool
            Whether only the inputs of blocks are kept, and each block computed again on the way back: equal bits.

        Returns
        -------
        loss : float
        gradients : dict of str to array
            By ``SITE.ARRAY``, of what is trained.
        """
        ids = self._checked(ids)
        encoding = self._encode(keep=True)
        logits, (prompting, blocks, ending) = self._forward(ids[:, :-1], keep=True, checkpointing=checkpointing)
        loss, call = self._cross_entropy(logits, ids[:, 1:], mask, keep=True)
        one = self.asarray(np.ones(()))
        dlogits = self._run.vjp(call, one, ["logits"])["logits"]
        gradients: dict[str, Any] = {}
        prompted = "prompt" in self.sites
        first = 0 if prompted else next((i for i in range(self.shape.layers) if self._trains(i)), self.shape.layers)
        dx = self._linear_vjp("head", ending["head"], dlogits, gradients, first < self.shape.layers)
        if first < self.shape.layers:
            dx = self._run.vjp(ending["norm"], dx, ["x"])["x"]
        for i in range(self.shape.layers - 1, first - 1, -1):
            dx = self._block_vjp(i, blocks[i], dx, gradients, i > first or prompted)
        if prompted:
            self._vjp("prompt", prompting, dx, gradients, [])
        return float(self.host(loss)), self._encode_vjp(encoding, gradients)

    def score(self, ids: np.ndarray, mask: np.ndarray | None = None) -> float:
        """The loss alone; as for `loss`, without what its gradients would take."""
        ids = self._checked(ids)
        self._encode(keep=False)
        loss, _ = self._cross_entropy(self._forward(ids[:, :-1], keep=False)[0], ids[:, 1:], mask, keep=False)
        return float(self.host(loss))

    def _cross_entropy(self, logits, target, mask, *, keep: bool):
        virtual = logits.shape[1] - target.shape[1]
        if virtual:
            mask = prompt.extend_mask(np.ones(target.shape, bool) if mask is None else np.asarray(mask), virtual)
            mask[:, :virtual] = False
            target = prompt.extend_labels(target, virtual, ignore=0)
        inputs = {"logits": logits, "target": self.asarray(target)}
        if mask is not None:
            inputs["mask"] = self.asarray(np.asarray(mask))
        return self._run.forward("nn.cross_entropy", inputs, keep)

    def _forward(self, ids, *, keep: bool, cache: list | None = None, checkpointing: bool = False, last: bool = False):
        offset = cache[0][0].shape[-2] if cache else 0
        x, _ = self._run.forward("nn.embedding", {"ids": self.asarray(ids), "weight": self._table}, keep=False)
        prompting = None
        if "prompt" in self.sites and not offset:
            x, prompting = self._call("prompt", {"x": x}, keep)
        tables = self._tables(offset, x.shape[1])
        blocks = []
        for i in range(self.shape.layers):
            y, calls = self._block(i, x, tables, keep and not checkpointing, cache)
            blocks.append(Block(x if checkpointing else None, calls))
            x = y
        x = x[:, -1:] if last else x
        x, norm = self._run.forward("nn.rms_norm", {"x": x, "weight": self._norms["norm"]}, keep, eps=self.eps)
        logits, head = self._call("head", {"x": x}, keep)
        return logits, (prompting, blocks, {"norm": norm, "head": head})

    def _block(self, i: int, x, tables, keep: bool, cache: list | None = None):
        """One block, and its calls."""
        site, calls, shape = f"layers.{i}", {}, self.shape

        def norm(name, x):
            y, calls[name] = self._run.forward(
                "nn.rms_norm", {"x": x, "weight": self._norms[f"{site}.{name}"]}, keep, eps=self.eps
            )
            return y

        def linear(name, x):
            y, calls[name] = self._call(f"{site}.{name}", {"x": x}, keep)
            return y

        def sublayer(name, h):
            """What stands behind one takes its output, and adds to it."""
            if f"{site}.{name}" in self.sites:
                h, calls[name] = self._call(f"{site}.{name}", {"x": h, "residual": h}, keep)
            return h

        def turned(name, x):
            y, calls[name] = self._run.forward("nn.rope", {"x": x, **tables}, keep, layout="halves")
            return y

        n = norm("attn.norm", x)
        q = turned("turn.q", _heads(linear("attn.q", n), shape.heads))
        k = turned("turn.k", _heads(linear("attn.k", n), shape.kv_heads))
        v = _heads(linear("attn.v", n), shape.kv_heads)
        offset = 0
        if cache is not None:
            offset, k, v = self._cached(cache, i, k, v)
        y, calls["attention"] = self._call(
            f"{site}.attention", {"q": q, "k": k, "v": v}, keep, causal=True, offset=offset
        )
        x = x + sublayer("attn.out", linear("attn.o", _joined(y)))
        n = norm("mlp.norm", x)
        y, calls["swiglu"] = self._run.forward(
            "nn.swiglu", {"gate": linear("mlp.gate", n), "up": linear("mlp.up", n)}, keep
        )
        return x + sublayer("mlp.out", linear("mlp.down", y)), calls

    def _block_vjp(self, i: int, block: Block, dy, gradients: dict, below: bool):
        """The gradient to the block's input, if anything below is trained; those of its sites go into ``gradients``."""
        site, calls, shape = f"layers.{i}", block.calls, self.shape
        if block.input is not None:
            _, calls = self._block(i, block.input, self._tables(0, block.input.shape[1]), keep=True)
        vjp = self._run.vjp

        def linear(name, dy, further=True):
            return self._linear_vjp(f"{site}.{name}", calls[name], dy, gradients, further)

        def sublayer(name, dy):
            if name not in calls:
                return dy
            found = self._vjp(f"{site}.{name}", calls[name], dy, gradients, ["x", "residual"])
            return found["x"] + found["residual"]

        branch = vjp(calls["swiglu"], linear("mlp.down", sublayer("mlp.out", dy)), ["gate", "up"])
        dn = linear("mlp.gate", branch["gate"]) + linear("mlp.up", branch["up"])
        dx = dy + vjp(calls["mlp.norm"], dn, ["x"])["x"]
        dheads = _heads(linear("attn.o", sublayer("attn.out", dx)), shape.heads)
        inner = [n for n in ("q", "k", "v") if below or self.sites[f"{site}.attn.{n}"].trained]
        d = self._vjp(f"{site}.attention", calls["attention"], dheads, gradients, inner)
        for n in set(inner) - {"v"}:
            d[n] = vjp(calls[f"turn.{n}"], d[n], ["x"])["x"]
        parts = [linear(f"attn.{n}", _joined(d[n]), below) for n in inner]
        if not below:
            return None
        return dx + vjp(calls["attn.norm"], parts[0] + parts[1] + parts[2], ["x"])["x"]

    def _linear_vjp(self, site: str, call: Call, dy, gradients: dict, further: bool):
        """The gradient to x where it goes further; those of what is trained go into ``gradients``."""
        return self._vjp(site, call, dy, gradients, ["x"] if further else []).get("x")

    def _trains(self, i: int) -> bool:
        return any(layer.trained for site, layer in self.sites.items() if site.startswith(f"layers.{i}."))

    def _cached(self, cache: list, i: int, k, v):
        """How many tokens came before, and keys and values with theirs in front."""
        before = cache[i][0].shape[-2] if len(cache) > i else 0
        if before:
            k, v = (
                self.asarray(np.concatenate([self.host(old), self.host(new)], axis=-2))
                for old, new in zip(cache[i], (k, v))
            )
        cache[i : i + 1] = [(k, v)]
        return before, k, v

    def _tables(self, offset: int, count: int) -> dict[str, Any]:
        """Cosines and sines for tokens behind ``offset`` others, and behind the prefix."""
        prefix = self.sites["layers.0.attention"].arrays.get("prefix_k") if self.shape.layers else None
        start = offset + (0 if prefix is None else prefix.shape[-2])
        angles = rope.angles(np.arange(start, start + count), self._frequencies)
        return {"cos": self.asarray(np.cos(angles)), "sin": self.asarray(np.sin(angles))}

    def _checked(self, ids) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind != "i":
            raise ShapeError(f"token ids are integers of shape (n, s), but {ids.dtype} of shape {ids.shape} came.")
        if ids.size and not (ids.min() >= 0 and ids.max() < self.shape.vocabulary):
            raise DomainError(
                f"token ids lie from 0 to {self.shape.vocabulary - 1}, but {ids.min()} to {ids.max()} came."
            )
        return ids.astype(np.int64)


def pattern(shape: Decoder, targets: str) -> str:
    """The sites in every layer of matrices that ``targets`` names, see `Decoder.select`."""
    return ",".join(f"layers.*.{place(m.site)}" for m in shape.select(targets))


def _heads(x, count: int):
    """(n, s, count d) as (n, count, s, d)."""
    return x.reshape(*x.shape[:-1], count, x.shape[-1] // count).swapaxes(-2, -3)


def _joined(x):
    """(n, h, s, d) as (n, s, h d)."""
    n, h, s, d = x.shape
    return x.swapaxes(-2, -3).reshape(n, s, h * d)
