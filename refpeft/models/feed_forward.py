"""A block's feed-forward sublayer.

gated    y = D (silu(G x) o U x)        (Shazeer 2020, arXiv:2002.05202)
plain    y = D gelu(U x)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refpeft.models.parts import Vjp, at

if TYPE_CHECKING:
    from refpeft.models.transformer import Transformer


def feed_forward(model: Transformer, layer: str, x, keep: bool) -> tuple[Any, Vjp]:
    """Whichever the model has."""
    return (gated if model.shape.gated else plain)(model, f"{layer}.mlp", x, keep)


def gated(model: Transformer, site: str, x, keep: bool) -> tuple[Any, Vjp]:
    """y = D (silu(G x) o U x)."""
    gate, gate_vjp = at(model, f"{site}.gate", x, keep)
    up, up_vjp = at(model, f"{site}.up", x, keep)
    h, call = model.run.forward("nn.swiglu", {"gate": gate, "up": up}, keep)
    y, down_vjp = at(model, f"{site}.down", h, keep)

    def vjp(dy, gradients, further=True):
        d = model.run.vjp(call, down_vjp(dy, gradients), ["gate", "up"])
        dx = [gate_vjp(d["gate"], gradients, further), up_vjp(d["up"], gradients, further)]
        return dx[0] + dx[1] if further else None

    return y, vjp


def plain(model: Transformer, site: str, x, keep: bool) -> tuple[Any, Vjp]:
    """y = D gelu(U x)."""
    up, up_vjp = at(model, f"{site}.up", x, keep)
    h, call = model.run.forward("nn.gelu", {"x": up}, keep, approximate=model.gelu)
    y, down_vjp = at(model, f"{site}.down", h, keep)

    def vjp(dy, gradients, further=True):
        dh = model.run.vjp(call, down_vjp(dy, gradients), ["x"])["x"]
        return up_vjp(dh, gradients, further)

    return y, vjp
