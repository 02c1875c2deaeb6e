"""AdapterHub's adapters trains as many numbers as the methods count."""

from __future__ import annotations

import warnings

import pytest

from refpeft.methods import methods

pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    adapters = pytest.importorskip("adapters")

WIDTH, LAYERS, RANK = 32, 2, 4
MODEL, KEYS, WEIGHT = (WIDTH, LAYERS), (LAYERS, WIDTH, 4, 4), (WIDTH, WIDTH)
EDITS = (WIDTH, 2 * LAYERS)
_FEWER = {"reduction_factor": 4, "inv_adapter_reduction_factor": 4}
COUNTED = [
    ("houlsby", {"reduction": 4}, "DoubleSeqBnConfig", {"reduction_factor": 4}, MODEL),
    ("pfeiffer", {"reduction": 4}, "SeqBnConfig", {"reduction_factor": 4}, MODEL),
    ("pfeiffer_inv", {"reduction": 4}, "SeqBnInvConfig", {"reduction_factor": 4}, MODEL),
    ("houlsby_inv", {"reduction": 4, "inner": 4}, "DoubleSeqBnInvConfig", _FEWER, MODEL),
    ("parallel_adapter", {}, "ParBnConfig", {}, MODEL),
    ("scaled_parallel_adapter", {}, "ParBnConfig", {"scaling": "learned"}, MODEL),
    ("adapter_plus", {"reduction": 8}, "AdapterPlusConfig", {"reduction_factor": 8, "stochastic_depth": 0.0}, MODEL),
    ("compacter", {"reduction": 8}, "CompacterConfig", {"reduction_factor": 8}, MODEL),
    ("compacter_plus_plus", {"reduction": 8}, "CompacterPlusPlusConfig", {"reduction_factor": 8}, MODEL),
    ("prefix", {"tokens": 5, "hidden": 6}, "PrefixTuningConfig", {"prefix_length": 5, "bottleneck_size": 6}, KEYS),
    ("ptuning_v2", {"tokens": 5}, "PrefixTuningConfig", {"prefix_length": 5, "flat": True}, KEYS),
    ("prompt", {"tokens": 5}, "PromptTuningConfig", {"prompt_length": 5}, (WIDTH,)),
    ("lora", {"rank": RANK}, "LoRAConfig", {"r": RANK}, WEIGHT),
    ("dora", {"rank": RANK}, "DoRAConfig", {"r": RANK}, WEIGHT),
    ("gated_lora", {"rank": RANK}, "LoRAConfig", {"r": RANK, "use_gating": True}, WEIGHT),
    ("gated_adapter", {"reduction": 4}, "SeqBnConfig", {"reduction_factor": 4, "use_gating": True}, MODEL),
    (
        "gated_prefix",
        {"tokens": 5, "apart": True},
        "PrefixTuningConfig",
        {"prefix_length": 5, "flat": True, "use_gating": True, "shared_gating": False},
        KEYS,
    ),
    ("mtl_lora", {"rank": RANK, "projections": 3}, "MTLLoRAConfig", {"r": RANK, "n_up_projection": 3}, WEIGHT),
    ("ia3", {}, "IA3Config", {"intermediate_lora": False}, WEIGHT),
    ("loreft", {"rank": RANK}, "LoReftConfig", {"r": RANK}, EDITS),
    ("direft", {"rank": RANK}, "DiReftConfig", {"r": RANK, "tied_weights": True}, (WIDTH, LAYERS)),
    ("vera", {"rank": RANK}, "VeraConfig", {"r": RANK}, WEIGHT),
    ("dvora", {"rank": RANK}, "DvoRAConfig", {"r": RANK}, WEIGHT),
]
"""A method, AdapterHub's configuration of it, and what its count is asked of; by weights, of which there are two in a layer."""


def bert():
    """A model of two layers."""
    from transformers import BertConfig, BertModel

    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 2 * WIDTH,
    }
    return BertModel(BertConfig(vocab_size=9, **sizes))


def bart():
    """One of two layers in its encoder, and two in its decoder."""
    from transformers import BartConfig, BartModel

    sizes = {"layers": LAYERS, "attention_heads": 4, "ffn_dim": 2 * WIDTH}
    both = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()}
    return BartModel(BartConfig(vocab_size=9, d_model=WIDTH, **both))


def trained(config: str, options: dict, made=bert) -> int:
    """How many numbers of a model are trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = made()
        adapters.init(model)
        model.add_adapter("adapter", config=getattr(adapters, config)(**options))
        model.train_adapter("adapter")
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "fields", "config", "options", "asked"), COUNTED, ids=lambda value: str(value))
def test_as_many_numbers_are_trained_as_counted(name, fields, config, options, asked):
    """But for VeRA and DVoRA, of whose vectors it trains the squares: `docs/findings/adapters-vera.md`."""
    sites = 2 * LAYERS if asked is WEIGHT else 1
    found, counted = trained(config, options), sites * methods()[name](**fields).count(*asked)
    squares = sites * (RANK**2 - RANK + WIDTH**2 - WIDTH) if name in ("vera", "dvora") else 0
    assert found == counted + squares


@pytest.mark.parametrize(
    ("config", "options", "parts"),
    [
        ("MAMConfig", {}, [("mam", {}, KEYS)]),
        (
            "UniPELTConfig",
            {"prefix_tuning": {"prefix_length": 10, "flat": True}},
            [("gated_prefix", {}, KEYS), ("gated_adapter", {}, MODEL), *2 * LAYERS * [("gated_lora", {}, WEIGHT)]],
        ),
    ],
    ids=["MAM", "UniPELT"],
)
def test_a_union_of_configurations_is_several_methods(config, options, parts):
    """It trains what they count together."""
    options = {name: adapters.PrefixTuningConfig(**fields) for name, fields in options.items()}
    counted = sum(methods()[name](**fields).count(*asked) for name, fields, asked in parts)
    assert trained(config, options) == counted


@pytest.mark.parametrize(("name", "more"), [("prefix", {"bottleneck_size": 6}), ("ptuning_v2", {"flat": True})])
def test_an_encoder_decoder_has_a_prefix_for_each_kind_of_attention(name, more):
    """Its encoder, its decoder, and the decoder's cross-attention: three of what `refpeft.ops.prefix.cut` cuts for two layers."""
    fields = {"tokens": 5} | ({"hidden": 6} if name == "prefix" else {})
    one = methods()[name](**fields).count(*KEYS)
    assert trained("PrefixTuningConfig", {"prefix_length": 5} | more, bart) == 3 * one
