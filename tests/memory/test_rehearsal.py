"""The peak of training, foretold on paper, against what NumPy reports of its arrays to tracemalloc."""

from __future__ import annotations

import importlib
import tracemalloc

import numpy as np
import pytest

from refpeft import plugins
from refpeft.convert.quantise import Settings as Quantisation
from refpeft.errors import CapabilityError
from refpeft.formats.four_bit import quantise as quantised
from refpeft.memory.decoder import Decoder
from refpeft.memory.ledger import Ledger
from refpeft.memory.models import ALL_GPT2
from refpeft.memory.rehearsal import rehearse, weights
from refpeft.models import LanguageModel
from refpeft.training import choice, loop

LLAMA = Decoder(
    name="llama", width=96, layers=4, heads=6, kv_heads=2, head_size=16, inner=256, vocabulary=1000, tied=True
)
GPT2 = Decoder(
    name="gpt2", width=96, layers=3, heads=6, kv_heads=6, head_size=16, inner=384, vocabulary=1000, positions=160,
    fused=True, gated=False, centred=True, biased=ALL_GPT2, tied=True,
)  # fmt: skip
BATCH, SEQUENCE = 2, 150
CASES = {
    "lora": (LLAMA, {"rank": 8}),
    "lora in gpt2": (GPT2, {"rank": 8}),
    "qlora": (LLAMA, {"rank": 8}),
    "dora": (LLAMA, {"rank": 8}),
    "ia3": (LLAMA, {}),
    "adapter": (LLAMA, {"reduction": 4}),
    "prefix": (LLAMA, {"tokens": 10}),
    "prompt": (LLAMA, {"tokens": 10}),
    "ptuning": (LLAMA, {"tokens": 10}),
}


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """Before anything is measured, the modules that the first start of a method imports: a megabyte that is no array."""
    importlib.import_module("refpeft.golden")


def drawn(shape: Decoder, quantise: Quantisation | None):
    """Random weights, those of blocks in 4 bits if it is said how."""
    random = np.random.default_rng(0)
    for name, ghost in weights(shape, Ledger(), None):
        array = random.standard_normal(ghost.shape, np.float32) / 8
        if quantise and array.ndim == 2 and name.startswith("layers."):
            array = quantised([array.reshape(-1)], array.shape, double=quantise.double, backend=plugins.backend("cpu"))
        yield name, array


def measured(shape, method, pattern, settings, quantise, folder) -> int:
    """Bytes at the peak of what `refpeft train` does, Python's own objects included."""
    ids = np.random.default_rng(1).integers(0, shape.vocabulary, (2, BATCH, SEQUENCE + 1))
    tracemalloc.start()
    model = LanguageModel(shape, dict(drawn(shape, quantise)), eps=1e-5, backend="cpu")
    tracemalloc.reset_peak()
    loop.begin(model, method, pattern, ids[0], settings)
    with loop.optimizer(model, method, settings, folder) as optimizer:
        for rows in ids:
            _, gradients = model.loss(rows, checkpointing=settings.checkpointing)
            optimizer.step(gradients)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("case", CASES)
def test_the_peak_of_training_is_foretold(case, checkpointing, tmp_path):
    """Within 5 %; what is not foretold is Python's own."""
    shape, numbers = CASES[case]
    name = case.split(" ")[0]
    method, pattern = choice.at(shape, choice.configured(name, **numbers), "")
    settings, quantise = loop.Settings(batch=BATCH, checkpointing=checkpointing), choice.base(name, None)
    found = sum(part.bytes for part in rehearse(shape, method, pattern, settings, SEQUENCE, quantise=quantise))
    real = measured(shape, method, pattern, settings, quantise, tmp_path)
    assert 0.95 * real <= found <= 1.01 * real


def test_the_weights_are_those_of_the_model():
    """As many elements as the shape has parameters, and the table of 4 bits has its codes and both kinds of maxima."""
    for shape in (LLAMA, GPT2):
        assert sum(array.size for _, array in weights(shape, Ledger(), None)) == shape.parameters()
    ledger = Ledger()
    kept = dict(weights(LLAMA, ledger, Quantisation(double=True)))
    linear, blocks = LLAMA.linear(), LLAMA.linear() // 64
    maxima = 4 * LLAMA.layers * sum(-(-m.elements // 64 // 256) for m in LLAMA.matrices())
    assert ledger.live == 4 * (LLAMA.parameters() - linear) + linear // 2 + blocks + maxima, len(kept)


def test_a_part_is_named_by_what_it_was_made_in():
    """Its arithmetic is of the arrays that are there: those of all blocks, or of the one that is computed again."""
    found = {}
    for checkpointing in (False, True):
        method, pattern = choice.at(LLAMA, choice.configured("lora", rank=8), "")
        settings = loop.Settings(batch=BATCH, checkpointing=checkpointing)
        found[checkpointing] = {p.name: p for p in rehearse(LLAMA, method, pattern, settings, SEQUENCE)}
    assert found[False]["nn.attention"].arithmetic.startswith(f"{LLAMA.layers} x 4 x {BATCH} x ")
    assert found[True]["nn.attention"].arithmetic.startswith(f"1 x 4 x {BATCH} x ")
    assert found[True]["weights"].bytes == 4 * LLAMA.parameters()


@pytest.mark.parametrize(
    ("name", "backend", "said"),
    [
        ("lora", "torch", "what torch holds is its library's affair"),
        ("lora", "reference", "cannot be rehearsed"),
        ("eva", "cpu", "starts from inputs"),
        ("vera", "cpu", "does not implement vera.linear"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(name, backend, said):
    method, pattern = choice.at(LLAMA, choice.configured(name, rank=8), "")
    with pytest.raises(CapabilityError, match=said):
        rehearse(LLAMA, method, pattern, loop.Settings(batch=BATCH), SEQUENCE, backend=backend)
