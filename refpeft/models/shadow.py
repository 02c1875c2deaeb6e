"""Shadow in a decoder: a small model beside it, whose state goes through the blocks with the hidden states (peft's ShadowPEFT).

    s = norm(blocks(x))                           of the small model, which mirrors the first blocks
    for each block:  h = inject(h, s);  h = block(h);  s = update(h, s)

x are the embedded tokens, which both models share. All that is the small model's is trained. Behind the last block the state is
read by nobody. In training the small model has a loss of its own, so that it is a model alone as well: what the head makes of s
as it begins,

    loss = CE(H norm(h)) + auxiliary CE(H s)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refpeft.errors import CapabilityError, ShapeError
from refpeft.methods import Arrays
from refpeft.methods.shadow import BACKBONE, INJECT, NETWORKS, UPDATE, Shadow
from refpeft.methods.xlora import GATES
from refpeft.models.attention import Shared
from refpeft.models.blocks import block
from refpeft.models.parts import Vjp, at, recomputed
from refpeft.models.places import Layer, Place, require_fitting, require_for

if TYPE_CHECKING:
    from refpeft.models.language import LanguageModel


class Beginning:
    """Of a pass in training: the shadow as it begins, (n, s, w), and the gradient that its own loss has to it."""

    state: Any = None
    gradient: Any = None


def auxiliary(model: LanguageModel) -> float:
    """The weight of the small model's own loss; 0 where there is none."""
    layer = model.sites.get(f"{BACKBONE}.norm")
    return layer.method.auxiliary if layer and isinstance(layer.method, Shadow) else 0.0


_DEVIATION = 0.02
"""Of the small model's matrices at the start, as transformers draws them."""


def attach(model: LanguageModel, method: Shadow, random: np.random.Generator, arrays: Arrays | None) -> None:
    """Put it beside all blocks, or those that lie together for which arrays came.

    Raises
    ------
    CapabilityError
        If the model is not of Llama's type, or has sliding windows, or X-LoRA.
    ShapeError
        If arrays are missing, or not those of its blocks.
    """
    if model.shape.family != "llama" or any(model.windows):
        raise CapabilityError(
            f"a shadow stands beside a decoder of Llama's type without windows, not {model.shape.name}."
        )
    if GATES in model.sites:
        raise CapabilityError("X-LoRA and a shadow do not stand in one model, where each has a pass of its own.")
    beside = {f"{BACKBONE}.{part}": layer for part, layer in _mirrored(model, method.depth).items()}
    if arrays is None:
        own = {i: method.init(random, model.tables["embedding"].T) for i in range(model.shape.layers)}
        arrays = {f"layers.{i}.{INJECT}": {n: own[i][n] for n in method.trainable} for i in own}
        arrays |= {f"layers.{i}.{UPDATE}": {n: own[i][n] for n in NETWORKS} for i in own}
        arrays |= {site: _drawn(layer, random) for site, layer in beside.items()}
    blocks = [i for i in range(model.shape.layers) if f"layers.{i}.{INJECT}" in arrays]
    if not blocks or blocks != [*range(blocks[0], blocks[-1] + 1)]:
        raise ShapeError(f"a shadow goes through blocks that lie together, but through {blocks} it was asked for.")
    token = (1, 1, model.shape.width)
    for i in blocks:
        beside[f"layers.{i}.{INJECT}"] = Layer("shadow.inject", {}, method.trainable, method.attributes())
        beside[f"layers.{i}.{UPDATE}"] = Layer("shadow.update", {}, NETWORKS)
    require_for([*beside], arrays)
    for site, layer in beside.items():
        given = {name: model.asarray(array) for name, array in arrays[site].items()}
        made = Layer(layer.operation, given, layer.trained or (*given,), layer.attributes, (*given,), method=method)
        if layer.trained:
            place = Place("shadow", model.tables["embedding"], {"x": token, "shadow": token})
            require_fitting(site, place, made)
        else:
            place = Place("shadow", given["weight"], {})
            _require_mirrored(site, layer, given)
        model.places = model.places | {site: place}
        model.sites[site] = made
    for j in range(method.depth):
        model.sites[f"{BACKBONE}.layers.{j}.attention"] = model.bare(f"layers.{j}.attention")


def _mirrored(model: LanguageModel, depth: int) -> dict[str, Layer]:
    """What the small model's layers are like: those of the first blocks, and the last norm."""
    if not 1 <= depth <= model.shape.layers:
        raise ShapeError(f"a shadow mirrors from 1 to {model.shape.layers} blocks, but {depth} were asked for.")
    plain = {site: place.plain for site, place in model.places.items() if place.plain} | {
        site: layer for site, layer in model.sites.items() if site.endswith("norm")
    }
    parts = ("attn.norm", *(f"attn.{n}" for n in "qkvo"), "mlp.norm", *(f"mlp.{n}" for n in ("gate", "up", "down")))
    sites = [f"layers.{j}.{part}" for j in range(depth) for part in parts] + ["norm"]
    return {site: Layer(plain[site].operation, plain[site].arrays, (), plain[site].attributes) for site in sites}


def _drawn(layer: Layer, random: np.random.Generator) -> dict[str, np.ndarray]:
    """A layer at its start: norms that change nothing, small matrices, no bias."""
    shapes = {name: tuple(array.shape) for name, array in layer.arrays.items()}
    weight = random.normal(0, _DEVIATION, shapes["weight"]) if len(shapes["weight"]) > 1 else np.ones(shapes["weight"])
    return {name: weight if name == "weight" else np.zeros(shape) for name, shape in shapes.items()}


def _require_mirrored(site: str, layer: Layer, given: Mapping[str, Any]) -> None:
    wanted, came = ({n: tuple(a.shape) for n, a in its.items()} for its in (layer.arrays, given))
    if wanted != came:
        raise ShapeError(f"{site} mirrors a layer with the arrays {wanted}, but {came} came.")


def shadowed(model: LanguageModel, x, shared: Shared, keep: bool, checkpointing: bool = False) -> tuple[Any, Vjp]:
    """What `refpeft.models.blocks.blocks` computes, with a shadow beside it."""
    count, steps = model.shape.layers, []
    own = None if shared.cache is None else shared.cache[count:]
    s, beside_vjp = _small(model, x, shared._replace(cache=own), keep)
    if (begins := model.beginning) is not None:
        begins.state = s
    last = max(i for i in range(count) if f"layers.{i}.{INJECT}" in model.sites)
    for i in range(count):
        layer = f"layers.{i}"
        plain = partial(block, model, layer, shared=shared)
        part: Callable = partial(recomputed, plain) if checkpointing else partial(plain, keep=keep)
        if f"{layer}.{INJECT}" in model.sites:
            x, s, step = _beside(model, layer, part, x, s, keep, read=i < last)
        else:
            x, step = _alone(*part(x))
        steps.append(step)
    if shared.cache is not None and own is not None:
        shared.cache[count:] = own

    def vjp(dx, gradients, further=True):
        ds = None
        for step in reversed(steps):
            dx, ds = step(dx, ds, gradients)
        if begins is not None and begins.gradient is not None:
            ds = ds + begins.gradient
        dbelow = beside_vjp(ds, gradients, further)
        return dx + dbelow if further else None

    return x, vjp


def _small(model: LanguageModel, x, shared: Shared, keep: bool) -> tuple[Any, Vjp]:
    """s = norm(blocks(x)) of the small model."""
    vjps: list[Vjp] = []
    while f"{BACKBONE}.layers.{len(vjps)}.attn.q" in model.sites:
        x, block_vjp = block(model, f"{BACKBONE}.layers.{len(vjps)}", x, keep, shared)
        vjps.append(block_vjp)
    s, norm_vjp = at(model, f"{BACKBONE}.norm", x, keep)

    def vjp(ds, gradients, further):
        dx = norm_vjp(ds, gradients)
        for j in reversed(range(len(vjps))):
            dx = vjps[j](dx, gradients, further or j > 0)
        return dx

    return s, vjp


def _beside(model: LanguageModel, layer: str, part: Callable, x, s, keep: bool, read: bool):
    """h = inject(x, s), y = block(h) and, where somebody reads it, update(y, s); and from the gradients to both to dx, ds."""
    h, injecting = model.call(f"{layer}.{INJECT}", {"x": x, "shadow": s}, keep)
    y, block_vjp = part(h)
    moved, updating = model.call(f"{layer}.{UPDATE}", {"x": y, "shadow": s}, keep) if read else (s, None)

    def step(dy, dmoved, gradients):
        if updating is None:
            unread = model.sites[f"{layer}.{UPDATE}"].arrays.items()
            gradients |= {f"{layer}.{UPDATE}.{n}": model.asarray(np.zeros(tuple(a.shape))) for n, a in unread}
            dh = block_vjp(dy, gradients)
        else:
            d = model.vjp(f"{layer}.{UPDATE}", updating, dmoved, gradients, ["x", "shadow"])
            dmoved, dh = d["shadow"], block_vjp(dy + d["x"], gradients)
        d = model.vjp(f"{layer}.{INJECT}", injecting, dh, gradients, ["x", "shadow"])
        return d["x"], d["shadow"] if dmoved is None else dmoved + d["shadow"]

    return y, moved, step


def _alone(y, block_vjp: Vjp):
    """A block that the shadow does not go through."""
    return y, lambda dy, ds, gradients: (block_vjp(dy, gradients), ds)
