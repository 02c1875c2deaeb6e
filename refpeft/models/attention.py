"""A block's attention sublayer.

    y = O attention(turn(Q x), turn(K x), V x)

Where positions are rotary, queries and keys are turned by their angles. Q, K and V may be one matrix, whose output is cut. What a
gated prompt adds goes through O as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from refpeft.models.gated import gated
from refpeft.models.parts import Vjp, at

if TYPE_CHECKING:
    from refpeft.models.transformer import Transformer


class Shared(NamedTuple):
    """What the blocks of one pass have in common.

    Attributes
    ----------
    turns : dict of str to array, or None
        Cosines and sines of rotary positions, (s, d / 2).
    cache : list or None
        Keys and values of the tokens before, a pair for each block; those of this pass are put behind them.
    masks : mapping of str to array
        Where query and key may meet, (n, s, t) bool, by block; everywhere in those that are not named.
    """

    turns: dict[str, Any] | None = None
    cache: list | None = None
    masks: Mapping[str, Any] = MappingProxyType({})


def attention(model: Transformer, layer: str, x, shared: Shared, keep: bool) -> tuple[Any, Vjp]:
    """y = O attention(turn(Q x), turn(K x), V x)."""
    shape, vjps = model.shape, {}
    rows, projections_vjp = (_together if shape.fused else _apart)(model, f"{layer}.attn", x, keep)
    q, k, v = (_heads(row, count) for row, count in zip(rows, (shape.heads, shape.kv_heads, shape.kv_heads)))
    if shared.turns is not None:
        q, vjps["q"] = _turned(model, q, shared.turns, keep)
        k, vjps["k"] = _turned(model, k, shared.turns, keep)
    if shared.cache is not None:
        k, v = _behind_cached(model, layer, k, v, shared.cache)
    before = k.shape[-2] - q.shape[-2]
    inputs = {"q": q, "k": k, "v": v, "mask": shared.masks.get(layer)}
    y, call = model.call(f"{layer}.attention", inputs, keep, causal=shape.causal, offset=before)
    y, gated_vjp = gated(model, layer, y, q, keep)
    y, output_vjp = at(model, f"{layer}.attn.o", _joined(y), keep)

    def vjp(dy, gradients, further=True):
        dheads, dq = gated_vjp(_heads(output_vjp(dy, gradients), shape.heads), gradients)
        into = [n for n in "qkv" if further or model.sites[f"{layer}.attn.{'qkv' if shape.fused else n}"].trained]
        d = model.vjp(f"{layer}.attention", call, dheads, gradients, into)
        d = {n: dn + dq if n == "q" and dq is not None else dn for n, dn in d.items()}
        d = {n: _joined(vjps[n](d[n]) if n in vjps else d[n]) for n in into}
        return projections_vjp(d, gradients, further) if into else None

    return y, vjp


def _apart(model: Transformer, site: str, x, keep: bool) -> tuple[list, Vjp]:
    """Q x, K x and V x, of three matrices."""
    parts = {n: at(model, f"{site}.{n}", x, keep) for n in "qkv"}
    vjps = {n: part_vjp for n, (_, part_vjp) in parts.items()}

    def vjp(d, gradients, further):
        dx = [vjps[n](dn, gradients, further) for n, dn in d.items()]
        return reduce(add, dx) if further else None

    return [row for row, _ in parts.values()], vjp


def _together(model: Transformer, site: str, x, keep: bool) -> tuple[list, Vjp]:
    """Q x, K x and V x, of one matrix whose rows are theirs one below the other."""
    rows, part_vjp = at(model, f"{site}.qkv", x, keep)
    q, k = (heads * model.shape.head_size for heads in (model.shape.heads, model.shape.kv_heads))

    def vjp(d, gradients, further):
        return part_vjp(model.joined(list(d.values()), axis=-1), gradients, further)

    return [rows[..., :q], rows[..., q : q + k], rows[..., q + k :]], vjp


def _turned(model: Transformer, x, turns: dict[str, Any], keep: bool) -> tuple[Any, Vjp]:
    """Each token's heads turned by its position."""
    y, call = model.run.forward("nn.rope", {"x": x, **turns}, keep and ("x",), layout="halves")
    return y, lambda dy: model.run.vjp(call, dy, ["x"])["x"]


def _behind_cached(model: Transformer, layer: str, k, v, cache: list):
    """Keys and values with those of the tokens before in front, which is what the cache holds from now on."""
    i = int(layer.rpartition(".")[2])
    if i < len(cache):
        k, v = (model.joined([old, new], axis=-2) for old, new in zip(cache[i], (k, v)))
    cache[i : i + 1] = [(k, v)]
    return k, v


def cached(cache: list | None) -> int:
    """How many tokens a cache holds."""
    return cache[0][0].shape[-2] if cache else 0


def _heads(x, count: int):
    """(n, s, count d) as (n, count, s, d)."""
    return x.reshape(*x.shape[:-1], count, x.shape[-1] // count).swapaxes(-2, -3)


def _joined(x):
    """(n, h, s, d) as (n, s, h d)."""
    n, h, s, d = x.shape
    return x.swapaxes(-2, -3).reshape(n, s, h * d)
