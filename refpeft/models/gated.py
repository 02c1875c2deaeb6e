"""A gated prompt beside attention, in the uppermost layers: what the queries find in it is added to each head (LLaMA-Adapter).

It goes through the frozen projections of the layer to keys and values, as the model has them, which have no bias then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refpeft.errors import ShapeError
from refpeft.methods.prefix import AdaptionPrompt
from refpeft.models.four_bit import Base
from refpeft.models.parts import Vjp
from refpeft.models.places import Layer, Place

if TYPE_CHECKING:
    from refpeft.models.sites import Sites
    from refpeft.models.transformer import Transformer

SITE = "attn.prompt"
GATE = "gate"


def places(model: Transformer) -> dict[str, Place]:
    """Its places, where the projections are matrices of their own without a bias."""
    shape, found = model.shape, {}
    heads = (1, shape.heads, 1, shape.head_size)
    for at in (f"layers.{i}" for i in range(shape.layers)):
        sites = [model.sites.get(f"{at}.attn.{n}") for n in "kv"]
        if all(layer is not None and "bias" not in layer.arrays for layer in sites):
            projection = (shape.kv_heads, shape.head_size, shape.width)
            below = {"base": heads, "q": heads, "weight_k": projection, "weight_v": projection}
            found[f"{at}.{SITE}"] = Place("gated", model.sites[f"{at}.attn.q"].arrays["weight"], below)
    return found


def gated(model: Transformer, layer: str, base, q, keep: bool) -> tuple[Any, Vjp]:
    """Attention's heads with what the prompt adds to them; the vjp gives what goes to them and to the queries."""
    site = f"{layer}.{SITE}"
    if site not in model.sites:
        return base, lambda dy, gradients: (dy, None)
    sizes = (model.shape.kv_heads, model.shape.head_size, model.shape.width)
    weights = {f"weight_{n}": _decoded(model.places[f"{layer}.attn.{n}"].weight).reshape(sizes) for n in "kv"}
    y, call = model.call(site, {"base": base, "q": q, **weights}, keep)

    def vjp(dy, gradients):
        d = model.vjp(site, call, dy, gradients, ["base", "q"])
        return d["base"], d["q"]

    return y, vjp


def spread(layer: Layer, arrays: dict[str, Any], heads: int) -> dict[str, Any]:
    """A layer's arrays as its operation takes them: a gate of all heads, for each of them."""
    return {**arrays, GATE: arrays[GATE].repeat(heads)} if one_gate(layer) else arrays


def one_gate(layer: Layer) -> bool:
    """Whether a layer's heads have one gate."""
    return isinstance(layer.method, AdaptionPrompt) and layer.method.gates == "layer"


def require_uppermost(model: Sites, chosen: Sequence[str]) -> None:
    """Refuse sites that are not those of the last layers.

    Raises
    ------
    ShapeError
    """
    known = [site for site, place in model.places.items() if place.kind == "gated"]
    if [*chosen] != known[len(known) - len(chosen) :]:
        raise ShapeError(f"a gated prompt stands in the uppermost layers, but at {', '.join(chosen)} it was asked for.")


def _decoded(weight):
    return weight.decoded() if isinstance(weight, Base) else weight
