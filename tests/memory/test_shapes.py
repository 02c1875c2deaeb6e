"""The shapes of a decoder are those that transformers builds, and what a method trains is what peft trains."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from refpeft.errors import AttributeValueError, FormatError
from refpeft.memory.models import PRESETS, from_config, read
from refpeft.memory.trained import by_method, configured, full

SMALL = {"vocab_size": 97, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 24, "intermediate_size": 40}
CONFIGS = {
    "llama": {"model_type": "llama", **SMALL},
    "llama with biases, grouped heads of their own size, a tied head": {
        "model_type": "llama",
        **SMALL,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "mistral": {"model_type": "mistral", **SMALL, "num_key_value_heads": 2},
    "qwen2": {"model_type": "qwen2", **SMALL, "num_key_value_heads": 1},
    "gpt2": {"model_type": "gpt2", "vocab_size": 97, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 50},
    "gpt2 with another inner width": {
        "model_type": "gpt2",
        "vocab_size": 97,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 3,
        "n_inner": 31,
    },
}
"""``n_positions`` of GPT-2 is 1024 where not given."""
LORA = {"llama": ("q_proj", "v_proj"), "mistral": ("up_proj", "down_proj"), "gpt2": ("c_attn", "c_fc")}
METHODS = {
    "lora": {},
    "dora": {},
    "loha": {},
    "hra": {},
    "vera": {},
    "prompt": {"tokens": "7"},
    "ptuning_v2": {"tokens": "7"},
}


def on_meta(config):
    """transformers' model of a configuration, which has shapes and no numbers."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    known = dict(config)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(known.pop("model_type"), **known)
        )


@pytest.mark.parametrize("what", CONFIGS)
def test_a_configuration_has_as_many_parameters_as_transformers_builds(what, tmp_path):
    """From the numbers given, and from the file that transformers writes with all its defaults."""
    model = on_meta(CONFIGS[what])
    expected = sum(p.numel() for p in model.parameters())
    assert from_config({"n_positions": 1024} | CONFIGS[what], "config.json").parameters() == expected
    model.config.save_pretrained(tmp_path)
    assert read(str(tmp_path)).parameters() == expected


@pytest.mark.parametrize("family", LORA)
def test_lora_trains_what_peft_trains(family):
    """At two matrices and at all of a block, fused or not; of GPT-2 peft knows the sublayers by one name, c_proj."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    decoder = from_config({"n_positions": 1024} | CONFIGS[family], "config.json")
    for targets, sites in ((",".join(LORA[family]), list(LORA[family])), ("all-linear", "all-linear")):
        with torch.device("meta"):
            model = peft.get_peft_model(
                on_meta(CONFIGS[family]),
                peft.LoraConfig(r=5, target_modules=sites, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2"),
            )
        method = configured("lora", 5, {}, decoder)
        assert by_method(decoder, "lora", method, targets).parameters == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("name", METHODS)
def test_other_methods_train_what_peft_trains(name):
    """At q and down, or once for the model."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    sites = {"target_modules": ["q_proj", "down_proj"], "r": 4}
    virtual = {"num_virtual_tokens": 7}
    config = {
        "lora": lambda: peft.LoraConfig(**sites, lora_alpha=4),
        "dora": lambda: peft.LoraConfig(**sites, use_dora=True),
        "loha": lambda: peft.LoHaConfig(**sites),
        "hra": lambda: peft.HRAConfig(**sites),
        "vera": lambda: peft.VeraConfig(**sites),
        "prompt": lambda: peft.PromptTuningConfig(**virtual),
        "ptuning_v2": lambda: peft.PrefixTuningConfig(**virtual),
    }[name]()
    config.task_type = "CAUSAL_LM"
    decoder = from_config(CONFIGS["llama"], "config.json")
    torch.manual_seed(0)
    model = on_meta(CONFIGS["llama"]).to_empty(device="cpu")
    expected = peft.get_peft_model(model, config).get_nb_trainable_parameters()[0]
    rank = None if "tokens" in METHODS[name] else 4
    assert by_method(decoder, name, configured(name, rank, METHODS[name], decoder), "q,down").parameters == expected


def test_the_presets_have_their_papers_sizes():
    """The released LLaMA checkpoints hold these numbers; GPT-3 has 175 thousand million to three digits."""
    counts = {name: decoder.parameters() for name, decoder in PRESETS.items()}
    assert counts == {
        "gpt3-175b": 174_604_259_328,
        "llama-7b": 6_738_415_616,
        "llama-13b": 13_015_864_320,
        "llama-33b": 32_528_943_616,
        "llama-65b": 65_285_660_672,
    }


def test_a_gguf_file_tells_its_shapes(tmp_path):
    """From keys and tensors: grouped heads, the vocabulary, biases where there are some, a tied head where there is none."""
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_block_count(3)
    writer.add_embedding_length(24)
    writer.add_feed_forward_length(40)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tensor("token_embd.weight", np.zeros((97, 24), np.float32))
    writer.add_tensor("blk.0.attn_q.bias", np.zeros(24, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = from_config(CONFIGS["llama"] | {"num_key_value_heads": 2, "tie_word_embeddings": True}, "a")
    assert read(str(tmp_path / "a.gguf")) == replace(expected, name="a.gguf", biased=frozenset({"q"}))


def test_full_fine_tuning_trains_everything():
    """Every parameter, and every matrix's input is needed."""
    trained = full(PRESETS["llama-7b"])
    assert trained.parameters == PRESETS["llama-7b"].parameters()
    assert trained.inputs == {"q", "k", "v", "o", "gate", "up", "down"}


BAD = {
    "another family": ({"model_type": "t5"}, "model_type is 't5', expected one of llama, mistral, qwen2, gpt2"),
    "a missing size": ({"model_type": "llama"}, "hidden_size must be a positive integer, got None"),
    "a size that is none": ({"model_type": "gpt2", "n_embd": True}, "n_embd must be a positive integer, got True"),
    "a width that heads do not divide": (
        {**CONFIGS["llama"], "num_attention_heads": 5},
        "a multiple of the 5 heads, got 24",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_configuration_is_refused(what, tmp_path):
    """With the key, what was expected and what came."""
    config, said = BAD[what]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"config\.json: ") as refused:
        read(str(tmp_path))
    assert said in str(refused.value)


def test_what_is_no_matrix_of_a_block_is_refused():
    """The refusal names those that there are."""
    decoder = from_config({"n_positions": 1024} | CONFIGS["gpt2"], "config.json")
    with pytest.raises(AttributeValueError, match="has no matrix 'q', expected some of qkv, o, up, down"):
        decoder.select("q,up")
