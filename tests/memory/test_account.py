"""The account: what papers claim follows from it, and a block keeps what autograd keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refpeft.errors import AttributeValueError, CapabilityError
from refpeft.memory.account import OPTIMIZERS, Run, account, constants, state
from refpeft.memory.activations import Batch, block, total
from refpeft.memory.claims import claims
from refpeft.memory.decoder import Decoder
from refpeft.memory.models import ALL_GPT2, PRESETS
from refpeft.memory.trained import Trained, by_method, configured, full

SMALL = Decoder(
    name="small",
    width=12,
    layers=2,
    heads=3,
    kv_heads=3,
    head_size=4,
    inner=20,
    vocabulary=31,
    positions=16,
    gated=False,
    centred=True,
    biased=ALL_GPT2,
)
FROZEN = Trained(0, "")


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.statement)
def test_what_the_papers_say_follows(claim):
    """Each claim holds, by the arithmetic that it shows."""
    assert claim.holds, claim.arithmetic


def lora(decoder, targets, rank=2):
    return by_method(decoder, "lora", configured("lora", rank, {}, decoder), targets)


def bytes_that_autograd_keeps(decoder, trained, s):
    """Bytes of all that torch saves in the forward pass of a block, weights left out."""
    torch = pytest.importorskip("torch")
    functional, width, h, d = torch.nn.functional, decoder.width, decoder.heads, decoder.head_size
    random = torch.Generator().manual_seed(0)

    def weight(*shape, trained):
        return torch.randn(*shape, generator=random).requires_grad_(trained)

    adapted = {} if trained.everything else trained.inputs
    rank = trained.hidden // max(len(adapted), 1)
    weights = {m.site: weight(m.o, m.i, trained=trained.everything) for m in decoder.matrices()}
    factors = {
        m.site: (weight(rank, m.i, trained=True), weight(m.o, rank, trained=True))
        for m in decoder.matrices()
        if m.site in adapted
    }
    gains = [weight(width, trained=trained.everything) for _ in range(2)]

    def linear(site, x):
        y = functional.linear(x, weights[site])
        if site not in factors:
            return y
        a, b = factors[site]
        return y + functional.linear(functional.linear(x, a), b)

    def forward(x):
        normed = functional.layer_norm(x, (width,), gains[0])
        q, k, v = (linear(site, normed).view(s, h, d).transpose(0, 1) for site in "qkv")
        scores = torch.baddbmm(torch.full((s, s), -torch.inf).triu(1), q, k.transpose(1, 2), alpha=d**-0.5)
        mixed = torch.bmm(scores.softmax(-1), v).transpose(0, 1).reshape(s, width)
        x = x + linear("o", mixed)
        inner = functional.gelu(linear("up", functional.layer_norm(x, (width,), gains[1])), approximate="tanh")
        return x + linear("down", inner)

    known = {t.untyped_storage().data_ptr() for t in (*weights.values(), *sum(factors.values(), ()), *gains)}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    x = weight(s, width, trained=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(x)
    return sum(size for size, _ in saved.values())


@pytest.mark.parametrize(
    "trained",
    [full(SMALL), lora(SMALL, "q,v"), lora(SMALL, "all-linear"), lora(SMALL, "o,down"), FROZEN],
    ids=["full", "LoRA on q and v", "LoRA on all", "LoRA on o and down", "frozen"],
)
def test_a_block_keeps_what_autograd_keeps(trained):
    """To the byte, in a block of torch's own layers in float32: what is not needed by a gradient is not kept."""
    kept = total(block(SMALL, trained, Batch(1, 7, 4)))
    assert kept == bytes_that_autograd_keeps(SMALL, trained, 7)


@pytest.mark.parametrize("name", ["gpt3-175b", "llama-7b"])
def test_checkpointing_keeps_the_inputs_and_one_block(name):
    """In 16 bits, L inputs and the insides of one block, where L blocks were; nothing else changes."""
    decoder = PRESETS[name]
    trained, run = lora(decoder, "q,v"), Run(sequence=2048, batch=2)
    on, off = (
        {p.name: p.bytes for p in account(decoder, trained, replace(run, checkpointing=c))} for c in (True, False)
    )
    inputs = on.pop("blocks' inputs")
    assert inputs == decoder.layers * 2 * 2 * 2048 * decoder.width
    one = inputs // decoder.layers + on.pop("one block's activations")
    assert off.pop("blocks' activations") == decoder.layers * one
    assert on.items() >= {n: b for n, b in off.items() if n != "last norm and logits"}.items() - {
        ("gradients in flight", on["gradients in flight"])
    }


def test_fused_attention_is_linear_in_the_sequence():
    """Without probabilities what a block keeps doubles with the sequence; with them it more than doubles."""
    decoder = PRESETS["llama-7b"]
    trained = lora(decoder, "q,v")
    fused, whole = ([total(block(decoder, trained, Batch(1, s, 2, f))) for s in (512, 1024)] for f in (True, False))
    assert fused[1] == 2 * fused[0]
    assert whole[1] > 2 * whole[0]


def test_grouped_heads_keep_smaller_keys():
    """k and v are kept before they are shared: an eighth of them with an eighth of the heads."""
    grouped = replace(PRESETS["llama-65b"], kv_heads=8)
    sizes = [dict(block(d, FROZEN, Batch(1, 64, 2)))["k and v"] for d in (PRESETS["llama-65b"], grouped)]
    assert sizes[0] == 8 * sizes[1]


def test_constants_are_as_many_as_the_operations_give():
    """Bytes of absmax, or of codes, absmax2 and offset, of `nf4.quantize` and `nf4.double_quantize`, for odd sizes too."""
    from refpeft import catalogue

    known = catalogue()
    for n in (1, 63, 64, 65, 4099, 64 * 257):
        _, absmax = known["nf4.quantize"](np.ones(n, np.float32))
        codes, absmax2 = known["nf4.double_quantize"](np.float32(absmax), np.float32(1))
        assert constants(n, double=False) == 4 * len(absmax)
        assert constants(n, double=True) == len(codes) + 4 * len(absmax2) + 4


def test_states_are_those_of_the_optimizers():
    """Moments of 4 bytes: none, one, two; in 8 bits a byte each and 4 for each 256, a part of them as well; paged as not."""
    of = {name: state(name, 480) for name in OPTIMIZERS}
    one, eight = 4 * 480, 2 * (480 + 4 * 2)
    assert of == {
        "sgd": 0,
        "momentum": one,
        "lion": one,
        **dict.fromkeys(("adam", "adamw", "paged-adamw"), 2 * one),
        **dict.fromkeys(("adam8bit", "adamw8bit", "paged-adamw8bit"), eight),
    }


@pytest.mark.parametrize(
    "run", [Run(), Run(checkpointing=False), Run(quantised="nf4-double", optimizer="paged-adamw8bit")]
)
def test_every_part_has_a_colour(run):
    """The picture knows each part's name."""
    from refpeft.memory.picture import COLOURS

    for method in ("prefix", "houlsby", "lora"):
        decoder = PRESETS["llama-7b"]
        trained = by_method(decoder, method, configured(method, None, {}, decoder), "all-linear")
        assert {p.name for p in account(decoder, trained, run)} <= COLOURS.keys()


def test_quantised_weights_are_not_trained():
    """Full fine-tuning of an NF4 base is refused, and so is a run that is none."""
    decoder = PRESETS["llama-7b"]
    with pytest.raises(CapabilityError, match="full: weights in nf4 cannot be trained"):
        account(decoder, full(decoder), Run(quantised="nf4"))
    with pytest.raises(AttributeValueError, match=r"optimizer must be one of sgd, .*, got 'adagrad'"):
        Run(optimizer="adagrad")
    with pytest.raises(AttributeValueError, match="sequence must be at least 1, got 0"):
        Run(sequence=0)
