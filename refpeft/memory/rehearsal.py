"""Training rehearsed: the steps of a run as its backend computes them, on arrays that take memory on paper only.

What a backend keeps for its backward pass, what it needs beside that on the way, what the model's own code holds and for how
long: none of it is written down here. The model, its methods, the backend's operations and the optimizer are the ones that
train, and run on `refpeft.memory.ghosts`; the ledger is read where it stood highest. That takes a backend that computes with
NumPy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from refpeft import plugins
from refpeft.backend import Backend
from refpeft.convert.quantise import Settings as Quantisation
from refpeft.errors import CapabilityError
from refpeft.formats.four_bit import Nested, Quantised
from refpeft.memory.account import Part
from refpeft.memory.decoder import Decoder
from refpeft.memory.ghosts import Ghost
from refpeft.memory.ledger import Held, Ledger
from refpeft.memory.stage import Rehearsed, Stage
from refpeft.memory.trained import Trained
from refpeft.methods import Method, needs_of
from refpeft.models.places import place
from refpeft.training import loop

STEPS = 2
"""As many as it takes until all that a step finds is there: the second begins while the gradients of the first are held."""

LONGEST, MOST_TOKENS, MOST_TRAINED = 2**18, 2**24, 10**10
"""Tokens of a row and of a step, and trained parameters, that a rehearsal takes, see `require_small`."""


def rehearse(
    shape: Decoder,
    method: Method,
    pattern: str,
    settings: loop.Settings,
    sequence: int,
    *,
    backend: str = "cpu",
    quantise: Quantisation | None = None,
) -> list[Part]:
    """What is held at the peak of a run of `refpeft.training.loop.train`, by what it was made for; dropout's masks are left out.

    Parameters
    ----------
    shape : Decoder
    method, pattern
        As for `refpeft.training.loop.train`.
    settings : refpeft.training.loop.Settings
    sequence : int
        Tokens that a row predicts.
    backend : str
    quantise : refpeft.convert.quantise.Settings, optional
        How the matrices of blocks are kept in 4 bits.

    Raises
    ------
    CapabilityError
        If the backend has arrays of its own, or lacks an operation, or the method starts from data.
    """
    if needs := needs_of(method):
        raise CapabilityError(
            f"a rehearsal has no data, but {type(method).__name__} starts from {' and '.join(needs)}."
        )
    ledger = Ledger()
    stage = Stage(_with_numpy(backend), ledger)
    ledger.purpose = "weights"
    model = Rehearsed(shape, dict(weights(shape, ledger, quantise)), ledger, stage)
    ledger.purpose = "adapter"
    loop.begin(model, method, pattern, np.zeros((0, sequence + 1), np.int64), settings)
    ledger.purpose = "optimizer state"
    optimizer = loop.optimizer(model, method, settings)
    ids = np.zeros((settings.batch, sequence + 1), np.int64)
    for _ in range(STEPS):
        ledger.purpose = "between operations"
        _, gradients = model.loss(ids, checkpointing=settings.checkpointing)
        optimizer.step(gradients)
    return parts(ledger.at_peak)


def require_small(trained: Trained, batch: int, sequence: int) -> None:
    """Refuse what cannot be rehearsed in minutes: a method's start is drawn, and rows are walked through part by part.

    Raises
    ------
    CapabilityError
        Naming what there is too much of.
    """
    row = sequence + trained.prompt + trained.keys
    for came, most, what in (
        (row, LONGEST, "tokens in a row, a prompt's or a prefix's among them"),
        (batch * row, MOST_TOKENS, "tokens in a step"),
        (trained.parameters, MOST_TRAINED, "trained parameters"),
    ):
        if came > most:
            raise CapabilityError(f"a rehearsal takes at most {most:,} {what}, but {came:,} came.")


def parts(held: list[Held]) -> list[Part]:
    """One for each purpose, in the order in which they came to be; the arithmetic names its arrays, the largest first."""
    by_purpose: dict[str, Counter[Held]] = {}
    for one in held:
        by_purpose.setdefault(one.purpose, Counter())[one] += 1
    found = []
    for purpose, counts in by_purpose.items():
        largest = sorted(counts, key=lambda one: -counts[one] * one.bytes)
        terms = [f"{counts[h]} x {h.dtype.itemsize} x {' x '.join(map(str, h.shape)) or 1}" for h in largest]
        whole = " + ".join(terms[:3]) + (" + ..." if len(terms) > 3 else "")
        found.append(Part(purpose, sum(one.bytes * count for one, count in counts.items()), whole))
    return found


def weights(shape: Decoder, ledger: Ledger, quantise: Quantisation | None) -> Iterator[tuple[str, Ghost | Quantised]]:
    """A model's arrays in float32, by the names that `refpeft.models.transformer.Transformer` has for them."""

    def array(*sizes: int):
        return Ghost.of(ledger, sizes, np.float32)

    def norm(name: str):
        yield name, array(shape.width)
        if shape.centred:
            yield f"{name}.bias", array(shape.width)

    for name, rows in (("embedding", shape.vocabulary), ("positions", shape.positions)):
        if rows:
            yield name, array(rows, shape.width)
    for i in range(shape.layers):
        yield from norm(f"layers.{i}.attn.norm")
        yield from norm(f"layers.{i}.mlp.norm")
        for m in shape.matrices():
            name = f"layers.{i}.{place(m.site)}"
            yield name, in_four_bits(m.o, m.i, ledger, quantise) if quantise else array(m.o, m.i)
            if m.bias:
                yield f"{name}.bias", array(m.o)
    yield from norm("norm")
    if not shape.tied:
        yield "head", array(shape.vocabulary, shape.width)


def in_four_bits(o: int, i: int, ledger: Ledger, quantise: Quantisation) -> Quantised:
    """Codes of a matrix, two a byte, and the maxima of its blocks; doubly quantised, these are bytes with maxima of their own."""

    def array(size: int, dtype) -> Any:
        return Ghost.of(ledger, (size,), dtype)

    blocks = -(-o * i // quantise.blocksize)
    nested = Nested(array(-(-blocks // 256), np.float32), np.float32(0)) if quantise.double else None
    packed, maxima = array(-(-o * i // 2), np.uint8), array(blocks, np.uint8 if nested else np.float32)
    return Quantised(quantise.kind, packed, maxima, (o, i), quantise.blocksize, "float32", nested)


def _with_numpy(name: str) -> Backend:
    """The backend of a name, if it trains and its arrays are NumPy's."""
    backend = plugins.backend(name)
    if backend.training and type(backend.asarray(np.zeros(1), backend.devices()[0])) is np.ndarray:
        return backend
    raise CapabilityError(
        f"what {name} holds is its library's affair, expected a backend that trains in NumPy, as cpu."
    )
