"""Blocks, one on the other: attention and a feed-forward layer, each beside what goes into it.

Norms stand before them, or behind:

    x = x + attention(norm(x))        x = norm(x + attention(x))
    x = x + feed_forward(norm(x))     x = norm(x + feed_forward(x))

Where they stand behind, there is dropout of what a sublayer gives, in training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from refpeft.models.attention import Shared, attention
from refpeft.models.dropout import dropped
from refpeft.models.feed_forward import feed_forward
from refpeft.models.parts import Vjp, added, at, recomputed

if TYPE_CHECKING:
    from refpeft.models.transformer import Transformer


def blocks(model: Transformer, x, shared: Shared, keep: bool, checkpointing: bool = False) -> tuple[Any, Vjp]:
    """All of them; backwards, as far down as something is trained."""
    vjps = []
    for i in range(model.shape.layers):
        part = partial(block, model, f"layers.{i}", shared=shared)
        x, block_vjp = recomputed(part, x) if checkpointing else part(x, keep=keep)
        vjps.append(block_vjp)

    def vjp(dx, gradients, further=True):
        first = 0 if further else next((i for i in range(len(vjps)) if model.trains(f"layers.{i}.")), len(vjps))
        for i in reversed(range(first, len(vjps))):
            dx = vjps[i](dx, gradients, further or i > first)
        return dx if further else None

    return x, vjp


def block(model: Transformer, layer: str, x, keep: bool, shared: Shared) -> tuple[Any, Vjp]:
    """One of them."""
    attend, feed = partial(attention, model, layer, shared=shared), partial(feed_forward, model, layer)
    beside = norm_behind if model.shape.post else norm_before
    x, attention_vjp = beside(model, f"{layer}.attn", attend, x, keep)
    x, feed_forward_vjp = beside(model, f"{layer}.mlp", feed, x, keep)

    def vjp(dy, gradients, further=True):
        return attention_vjp(feed_forward_vjp(dy, gradients), gradients, further)

    return x, vjp


def norm_before(model: Transformer, name: str, sublayer: Callable, x, keep: bool) -> tuple[Any, Vjp]:
    """x + sublayer(norm(x))."""
    n, norm_vjp = at(model, f"{name}.norm", x, keep)
    h, sublayer_vjp = sublayer(n, keep=keep)
    y, added_vjp = added(model, f"{name}.out", x, h, keep)

    def vjp(dy, gradients, further=True):
        dx, dh = added_vjp(dy, gradients)
        dn = sublayer_vjp(dh, gradients, further or model.trains(f"{name}.norm"))
        dbelow = None if dn is None else norm_vjp(dn, gradients, further)
        return dx + dbelow if further else None

    return y, vjp


def norm_behind(model: Transformer, name: str, sublayer: Callable, x, keep: bool) -> tuple[Any, Vjp]:
    """norm(x + sublayer(x))."""
    h, sublayer_vjp = sublayer(x, keep=keep)
    h, dropped_vjp = dropped(model, f"{name}.dropout", h, model.hidden_dropout)
    z, added_vjp = added(model, f"{name}.out", x, h, keep)
    y, norm_vjp = at(model, f"{name}.norm", z, keep)

    def vjp(dy, gradients, further=True):
        dx, dh = added_vjp(norm_vjp(dy, gradients), gradients)
        dbelow = sublayer_vjp(dropped_vjp(dh), gradients, further)
        return dx + dbelow if further else None

    return y, vjp
