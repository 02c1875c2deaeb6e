"""What a method trains in a whole decoder, and what of the forward pass it makes the backward pass keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches

from refpeft.errors import AttributeValueError, CapabilityError
from refpeft.memory.decoder import Decoder
from refpeft.memory.sums import SUMS
from refpeft.methods import Method, dims_of, methods
from refpeft.options import listed, parsed

ALIASES = {"qlora": "lora", "adapter": "houlsby"}
"""``qlora`` is LoRA over a base in NF4 with double quantisation."""

_NO_SUM = {
    "xlora": "the adapters that its gates weigh are trained before, and take memory of their own",
    "adapter_fusion": "the adapters that it attends to are trained before, and take memory of their own",
    **dict.fromkeys(("mam", "mam_flat"), "it is two methods: ask for prefix or ptuning_v2, and for parallel_adapter"),
}
"""Methods that stand on others, of which the command line says nothing, or beside others."""

_PROMPTS = ("prompt", "cpt", "multitask_prompt", "ptuning", "ptuning_lstm")
_PREFIXES = ("prefix", "ptuning_v2", "cartridge", "mam", "mam_flat")


@dataclass(frozen=True)
class Trained:
    """What is trained.

    Attributes
    ----------
    parameters : int
    arithmetic : str
        How they are counted.
    inputs : frozenset of str
        Sites whose input the gradient of a trained parameter needs.
    hidden : int
        Elements that the method itself keeps, for each token and block.
    everything : bool
        Whether the model's own weights are trained, table and head included.
    prompt : int
        Tokens that stand before the sequence.
    keys : int
        Keys and values that each layer's attention reads besides the sequence's.
    """

    parameters: int
    arithmetic: str
    inputs: frozenset[str] = frozenset()
    hidden: int = 0
    everything: bool = False
    prompt: int = 0
    keys: int = 0


def full(decoder: Decoder) -> Trained:
    """Full fine-tuning: every parameter, so that the backward pass needs every matrix's input."""
    sites = frozenset(m.site for m in decoder.matrices())
    return Trained(decoder.parameters(), "all parameters", sites, everything=True)


def configured(name: str, rank: int | None, options: Mapping[str, str], decoder: Decoder) -> Method:
    """The method ``name`` with its rank and options set; of a bottleneck adapter the rank is its width.

    Raises
    ------
    CapabilityError
        If there is no such method, or its count in a model is not known.
    AttributeValueError
        If it has no such option, or the value is none it can have.
    """
    name = ALIASES.get(name, name)
    known = methods()
    if name not in known:
        near = get_close_matches(name, [*known, *ALIASES, "full"], n=1)
        hint = f"did you mean {near[0]}?" if near else "'refpeft methods' lists them, besides full and qlora."
        raise CapabilityError(f"There is no method {name!r}: {hint}")
    if name in _NO_SUM:
        raise CapabilityError(f"{name}: what it trains in a whole model is not known here, because {_NO_SUM[name]}.")
    own = {field.name for field in fields(known[name])}
    given = dict(options)
    if rank is not None:
        if "rank" in given:
            raise AttributeValueError(f"{name}: the rank is given twice, as {rank} and as {given['rank']}.")
        if "rank" in own:
            given["rank"] = str(rank)
        elif "reduction" in own and rank >= 1 and decoder.width // max(1, decoder.width // rank) == rank:
            given["reduction"] = str(decoder.width // rank)
        elif "reduction" in own:
            raise AttributeValueError(
                f"{name}: rank {rank} must be the width {decoder.width} over an integer, because the adapter's width is "
                "a reduction of it."
            )
        else:
            raise AttributeValueError(f"{name} has no rank, but {rank} came; its options are {listed(known[name])}.")
    if "size" in own:
        given.setdefault("size", str(decoder.head_size))
    return known[name](**parsed(name, known[name], given))


def by_method(decoder: Decoder, name: str, method: Method, targets: str) -> Trained:
    """A method in a decoder: at the targeted matrices of every block, or once for the model.

    A method for matrices trains L times the sum of its count (o, i) over them, or what `refpeft.memory.sums` says where layers
    share something. For its gradients it keeps each one's input, and r elements of its own where it has a rank: x A^T of LoRA.
    LoRA-FA needs these alone. A bottleneck adapter keeps its input and both sides of its activation. Prompts lengthen the
    sequence; prefixes give each layer more keys and values.
    """
    name = ALIASES.get(name, name)
    dims = set(dims_of(type(method)))
    if name in SUMS:
        chosen = decoder.select(targets)
        needed = frozenset(m.site for m in chosen) if name in ("vblora", "lily", "tinylora") else frozenset()
        return Trained(*SUMS[name](decoder, method, chosen), needed, hidden=getattr(method, "rank", 0) * len(chosen))
    rank = getattr(method, "rank", 0)
    if dims & {"o", "i"}:
        chosen = decoder.select(targets)
        counts = [method.count(**{d: getattr(m, d) for d in ("o", "i") if d in dims}) for m in chosen]
        sites = frozenset(m.site for m in chosen) if "i" in dims and name != "lora_fa" else frozenset()
        terms = " + ".join(f"{c:,} {m.site}" for c, m in zip(counts, chosen))
        return Trained(decoder.layers * sum(counts), f"{decoder.layers} x ({terms})", sites, hidden=rank * len(chosen))
    sizes = {
        "width": decoder.heads * decoder.head_size if "kv_heads" in dims else decoder.width,
        "layers": decoder.layers,
        "heads": decoder.heads,
        "kv_heads": decoder.kv_heads,
    }
    parameters = method.count(**{d: sizes[d] for d in dims})
    places, tokens = getattr(method, "places", 2 if name == "compacter" else 0), getattr(method, "tokens", 0)
    narrow = decoder.width // method.reduction if hasattr(method, "reduction") else 0
    return Trained(
        parameters,
        "once for the model",
        hidden=places * (decoder.width + 2 * narrow),
        prompt=tokens if name in _PROMPTS else 0,
        keys=tokens if name in _PREFIXES else 0,
    )
