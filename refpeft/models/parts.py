"""What blocks are made of, each with its gradient beside it.

A part gives what it computes and its *vjp*: a function of the cotangent dy and a dict, which gives dx, or None where nothing
further down is trained, and puts the gradients to what is trained in the part into the dict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refpeft.models.transformer import Transformer

Vjp = Callable[..., Any]


def at(model: Transformer, site: str, x, keep: bool) -> tuple[Any, Vjp]:
    """What stands at the site of a matrix or a norm: W x + b in the plain model, or the norm of x."""
    y, call = model.call(site, {"x": x}, keep)

    def vjp(dy, gradients, further=True):
        return model.vjp(site, call, dy, gradients, ["x"] if further else []).get("x")

    return y, vjp


def added(model: Transformer, site: str, x, h, keep: bool) -> tuple[Any, Vjp]:
    """x + h of a sublayer; with an adapter behind it x + h + A(h), x + h + A(x + h), or x + h + A(x), as it reads."""
    if site not in model.sites:
        return x + h, lambda dy, gradients: (dy, dy)
    reads = model.sites[site].reads
    to = x + h if reads == "sum" else h
    y, call = model.call(site, {"x": x if reads == "input" else to, "residual": to}, keep)

    def vjp(dy, gradients):
        d = model.vjp(site, call, dy, gradients, ["x", "residual"])
        if reads == "input":
            return dy + d["x"], d["residual"]
        dto = d["x"] + d["residual"]
        return dto if reads == "sum" else dy, dto

    return y if reads == "sum" else x + y, vjp


def embedded(model: Transformer, ids, keep: bool, prompted: bool = True) -> tuple[Any, Vjp | None]:
    """The rows of the table, behind the prompt if there is one; no vjp where neither is trained."""
    trained = bool(model.sites["embedding"].trained)
    x, table_call = model.call("embedding", {"ids": model.asarray(ids)}, keep and trained)

    def table_vjp(dx, gradients):
        model.vjp("embedding", table_call, dx, gradients, [])

    if not prompted or "prompt" not in model.sites:
        return x, table_vjp if trained else None
    y, prompt_call = model.call("prompt", {"x": x}, keep)

    def vjp(dy, gradients):
        d = model.vjp("prompt", prompt_call, dy, gradients, ["x"] if trained else [])
        if trained:
            table_vjp(d["x"], gradients)

    return y, vjp


def recomputed(part: Callable[[Any, bool], tuple[Any, Vjp]], x) -> tuple[Any, Vjp]:
    """A part of which the input alone is kept: it is computed again on the way back, to equal bits (arXiv:1604.06174)."""
    y, _ = part(x, False)

    def vjp(dy, gradients, further=True):
        return part(x, True)[1](dy, gradients, further)

    return y, vjp
