"""What a hand-written backward pass must find of the forward pass: one line for each tensor that a block keeps.

With n = b s tokens, width w, h query and g key heads of size d, inner width f, and e bytes an element. A tensor is kept only
where a gradient needs it: the input of a matrix is needed for that matrix's gradient, or its adapter's, and not where the
matrix is frozen, since dx = dy W needs the weight alone. For GPT-2's family with everything trained, dropout, and e = 2 this is
n w (34 + 5 h s / w) bytes a block, as Korthikanti et al. count it (arXiv:2205.05198), plus the norms' statistics, which they
leave out as small. Frameworks keep more: float32 copies inside norms and softmax, rotary tables, what the allocator rounds up.
"""

from __future__ import annotations

from typing import NamedTuple

from refpeft.memory.decoder import ATTENTION_INPUT, FEED_FORWARD_INPUT, Decoder
from refpeft.memory.trained import Trained


class Kept(NamedTuple):
    """One tensor that is kept, and its size in bytes."""

    name: str
    bytes: int


class Batch(NamedTuple):
    """b sequences of s tokens, in elements of e bytes; ``fused`` attention keeps no probabilities."""

    b: int
    s: int
    e: int
    fused: bool = False


def block(decoder: Decoder, trained: Trained, batch: Batch) -> list[Kept]:
    """What one block keeps, in the order of the forward pass."""
    b, s, e = batch.b, batch.s + trained.prompt, batch.e
    n, w, f = b * s, decoder.width, decoder.inner
    queries, keys = decoder.heads * decoder.head_size, decoder.kv_heads * decoder.head_size
    read, rows = s + trained.keys, b * decoder.heads * s
    needs = trained.inputs
    statistics = 4 * n * (2 if decoder.centred else 1)

    kept = [
        Kept("block input", e * n * w),
        Kept("statistics of norm 1", statistics),
        Kept("input of q, k, v", e * n * w if needs & set(ATTENTION_INPUT) else 0),
        Kept("q", e * n * queries),
        Kept("k and v", 2 * e * b * read * keys),
    ]
    if batch.fused:  # dq, dk, dv from q, k, v, the output and one logarithm a row
        kept += [Kept("log-sum-exp", 4 * rows), Kept("attention output", e * n * queries)]
    else:
        kept += [Kept("probabilities", e * rows * read)]
        if decoder.dropout:
            kept += [Kept("dropped probabilities", e * rows * read), Kept("mask of attention", rows * read)]
        kept += [Kept("attention output", e * n * queries if "o" in needs else 0)]
    kept += [
        Kept("mask after attention", n * w if decoder.dropout else 0),
        Kept("input of norm 2", e * n * w),
        Kept("statistics of norm 2", statistics),
        Kept("input of gate, up", e * n * w if needs & set(FEED_FORWARD_INPUT) else 0),
        Kept("gate and up" if decoder.gated else "up", e * n * f * (2 if decoder.gated else 1)),
        Kept("input of down", e * n * f if "down" in needs else 0),
        Kept("mask after down", n * w if decoder.dropout else 0),
        Kept("method's own", e * n * trained.hidden),
    ]
    return [tensor for tensor in kept if tensor.bytes]


def in_flight(decoder: Decoder, trained: Trained, batch: Batch) -> int:
    """Bytes of the gradients that one block's backward pass holds at a time.

    The block output's, n w, and beside it those of gate and up, n f each, or of the probabilities.
    """
    s = batch.s + trained.prompt
    inner = batch.b * s * decoder.inner * (2 if decoder.gated else 1)
    probabilities = 0 if batch.fused else batch.b * decoder.heads * s * (s + trained.keys)
    return batch.e * (batch.b * s * decoder.width + max(inner, probabilities))


def ends(decoder: Decoder, trained: Trained, batch: Batch) -> list[Kept]:
    """What is kept outside the blocks; the gradient of the loss is written over the logits, which are float32."""
    n = batch.b * (batch.s + trained.prompt)
    kept = [
        Kept("mask of embeddings", n * decoder.width if decoder.dropout else 0),
        Kept("input of the last norm", batch.e * n * decoder.width),
        Kept("input of the head", batch.e * n * decoder.width if trained.everything else 0),
        Kept("logits", 4 * n * decoder.vocabulary),
    ]
    return [tensor for tensor in kept if tensor.bytes]


def total(kept: list[Kept]) -> int:
    """The sum of their bytes."""
    return sum(tensor.bytes for tensor in kept)
