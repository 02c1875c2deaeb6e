"""Methods whose count in a whole decoder is not so many times that of one matrix: layers share a part, or only some have one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from refpeft.errors import CapabilityError
from refpeft.memory.decoder import Decoder, Matrix
from refpeft.methods import Method

Sum = tuple[int, str]
"""The count, and its arithmetic."""


def _vblora(decoder: Decoder, method: Method, chosen: Sequence[Matrix]) -> Sum:
    """One bank for the model; logits of each matrix: what its own count has beside the bank."""
    bank = method.bank * method.length  # type: ignore[attr-defined]
    logits = {m.site: method.count(o=m.o, i=m.i) - bank for m in chosen}
    return bank + decoder.layers * sum(logits.values()), f"{bank:,} bank + {_layers(decoder, logits)}"


def _lily(decoder: Decoder, method: Method, chosen: Sequence[Matrix]) -> Sum:
    """Layers share the B of a site, those next to each other its A; the router is each layer's own."""
    rank, experts, groups = method.rank, method.experts, -(-decoder.layers // method.stride)  # type: ignore[attr-defined]
    shared = {f"{m.site}'s B": experts * m.o * rank for m in chosen}
    near = {f"{m.site}'s A": m.i * rank for m in chosen}
    own = {m.site: experts * rank for m in chosen}
    together = sum(shared.values()) + groups * sum(near.values()) + decoder.layers * sum(own.values())
    return together, f"{_terms(shared)} + {groups} x ({_terms(near)}) + {_layers(decoder, own)}"


def _tinylora(decoder: Decoder, method: Method, chosen: Sequence[Matrix]) -> Sum:
    """Every matrix has its numbers, none of them tied."""
    numbers = {m.site: method.count() for m in chosen}
    return decoder.layers * sum(numbers.values()), _layers(decoder, numbers)


def _bitfit(decoder: Decoder, method: Method, chosen: Sequence[Matrix]) -> Sum:
    """The biases that the matrices have."""
    biases = {m.site: method.count(o=m.o) for m in chosen if m.bias}
    if not biases:
        raise CapabilityError(f"bitfit: it trains nothing in {decoder.name}, whose targeted matrices have no bias.")
    return decoder.layers * sum(biases.values()), _layers(decoder, biases)


def _ln_tuning(decoder: Decoder, method: Method, chosen: Sequence[Matrix]) -> Sum:
    """Two norms in a block and the last one: gain and bias of LayerNorm, the gain of RMSNorm."""
    each, norms = decoder.width * (2 if decoder.centred else 1), 2 * decoder.layers + 1
    return norms * each, f"{norms} norms x {each:,}"


def _trainable_tokens(decoder: Decoder, method: Method, chosen: Sequence[Matrix]) -> Sum:
    """Rows of the table of embeddings, which a tied head shares."""
    method.fits(decoder.vocabulary, decoder.width)
    tokens = len(method.tokens)  # type: ignore[attr-defined]
    return method.count(width=decoder.width), f"{tokens} rows x {decoder.width:,}"


SUMS: dict[str, Callable[[Decoder, Method, Sequence[Matrix]], Sum]] = {
    "vblora": _vblora,
    "lily": _lily,
    "tinylora": _tinylora,
    "bitfit": _bitfit,
    "ln_tuning": _ln_tuning,
    "trainable_tokens": _trainable_tokens,
}


def _layers(decoder: Decoder, counts: dict[str, int]) -> str:
    return f"{decoder.layers} x ({_terms(counts)})"


def _terms(counts: dict[str, int]) -> str:
    return " + ".join(f"{count:,} {name}" for name, count in counts.items())
