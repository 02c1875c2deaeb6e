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


LLAMA = replace(SMALL, kv_heads=1, gated=True, centred=False, biased=frozenset(), positions=0)
WAYS = {
    "full": full,
    "LoRA on q and v": lambda decoder: lora(decoder, "q,v"),
    "LoRA on all": lambda decoder: lora(decoder, "all-linear"),
    "LoRA on o and down": lambda decoder: lora(decoder, "o,down"),
    "frozen": lambda decoder: FROZEN,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("decoder", [SMALL, LLAMA], ids=["GPT-2", "Llama"])
def test_a_block_keeps_what_autograd_keeps(decoder, way):
    """To the byte, in float32: what no gradient needs is not kept, and keys are kept before the queries' heads share them."""
    pytest.importorskip("torch")
    from torch_block import bytes_kept

    trained = WAYS[way](decoder)
    assert total(block(decoder, trained, Batch(1, 7, 4))) == bytes_kept(decoder, trained, 7)


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


@pytest.mark.parametrize(
    ("model", "method", "options", "parameters"),
    [
        ("llama-7b", "vblora", {}, 256 * 16 + 32 * 256 * 4 * (4 * 512 + 2 * (256 + 688) + 688 + 256)),
        (
            "llama-7b",
            "lily",
            {"rank": "4"},
            7 * 32 * 4 * 2 + 32 * 4 * (6 * 4096 + 11008) + 2 * 4 * (5 * 4096 + 2 * 11008),
        ),
        ("llama-7b", "tinylora", {"numbers": "3"}, 32 * 7 * 3),
        ("llama-7b", "ln_tuning", {}, 65 * 4096),
        ("gpt3-175b", "ln_tuning", {}, 193 * 2 * 12288),
        ("gpt3-175b", "bitfit", {}, 96 * (3 + 1 + 4 + 1) * 12288),
        ("llama-7b", "trainable_tokens", {"tokens": "5,7,9"}, 3 * 4096),
    ],
)
def test_what_layers_share_is_counted_once(model, method, options, parameters):
    """And what only some parts have, where they have it."""
    decoder = PRESETS[model]
    assert by_method(decoder, method, configured(method, None, options, decoder), "all-linear").parameters == parameters
