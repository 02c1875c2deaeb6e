"""Models and adapters whose files lie: one sentence, exit status 2, and nothing is begun."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from refpeft.cli import main
from refpeft.formats import adapters, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.methods import LoRA
from refpeft.models import load


def refpeft(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(said, *arguments):
    """One sentence that says so, and exit status 2."""
    result = refpeft(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert said in result.stderr


@pytest.fixture
def copied(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "model")


def changed(folder, **fields):
    """The folder, its configuration another."""
    where = folder / "config.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | fields))
    return folder


def tensors(folder):
    return {name: np.array(array) for name, array in safetensors.load(folder / "model.safetensors").tensors.items()}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_hidden_layers": 1}, "it has tensors of 2 layers, but its configuration says 1"),
        ({"num_hidden_layers": 10**9}, "it has tensors of 2 layers, but its configuration says 1000000000"),
        ({"vocab_size": 300}, "embedding has shape (256, 32), expected (300, 32)"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be a number from 0 and below 1, but -1 came"),
        ({"rope_scaling": "x"}, 'rope_scaling must be an object, but "x" came'),
        ({"rope_parameters": [1]}, "rope_parameters must be an object, but [1] came"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "positions of a part of each head are not computed"),
        ({"rope_scaling": {"type": "linear", "factor": 1e-308}}, "positions turn by"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
             "original_max_position_embeddings": 64}},
            "low_freq_factor must be below high_freq_factor, but 4 and 4 came",
        ),
        ({"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2}}, "holds a value of another kind"),
        ({"model_type": "mistral", "sliding_window": 0.5}, "sliding_window must be a whole number of tokens, but 0.5"),
        ({"model_type": "qwen2", "use_sliding_window": True, "layer_types": 3}, "layer_types must name one of"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "x"}, "max_window_layers must be"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_a_configuration_that_lies_is_refused(copied, fields, said):
    """Before any number is computed with it."""
    refused(said, "generate", changed(copied, **fields), "--prompt", "a")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model.norm.weight", lambda a: a[:1], "norm has shape (1,), expected (32,)"),
        ("model.norm.weight", lambda a: a[None], "norm has shape (1, 32), expected (32,)"),
        ("lm_head.weight", lambda a: a[:200], "head has shape (200, 32), expected (256, 32)"),
        ("model.embed_tokens.weight", lambda a: a.T, "embedding has shape (32, 256), expected (256, 32)"),
        ("model.layers.0.self_attn.q_proj.weight", lambda a: a.astype(np.int8), "is of int8, expected floating-point"),
    ],
    ids=["norm of one", "norm of a row", "small head", "turned table", "integers"],
)
def test_tensors_of_another_shape_or_kind_are_refused(copied, name, change, said):
    """Those that are no matrices, too, which would be broadcast; integers without their scales are no weights."""
    found = tensors(copied)
    safetensors.save(copied / "model.safetensors", found | {name: np.ascontiguousarray(change(found[name]))})
    refused(said, "generate", copied, "--prompt", "a")


def test_rotary_positions_are_read_where_transformers_5_states_them(copied):
    """With ``rope_parameters`` the logits are those of the fields that they took the place of."""
    ids = np.arange(20)[None]
    plain = load(copied, backend="reference").logits(ids)
    before = {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    old = load(changed(copied, **before), backend="reference").logits(ids)
    now = {"rope_theta": None, "rope_scaling": None, "rope_parameters": before["rope_scaling"] | {"rope_theta": 500.0}}
    new = load(changed(copied, **now), backend="reference").logits(ids)
    np.testing.assert_array_equal(new, old)
    assert not np.array_equal(new, plain)


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    """LoRA of the model, as peft has it."""
    folder, model = tmp_path_factory.mktemp("lora") / "adapter", load(tiny_llama, backend="reference")
    model.attach("*.attn.q", method := LoRA(rank=2), np.random.default_rng(0))
    adapters.save(folder, Adapter(*model.kept(method)))
    return folder


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": ["LORA"]}, "peft_type must be a name, but ['LORA'] came"),
        ({"rank_pattern": 3}, "rank_pattern must give modules positive numbers, but is 3"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern must give modules positive numbers"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_an_adapters_configuration_of_other_types_is_refused(tiny_llama, adapter, tmp_path, fields, said):
    """By all that read one."""
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    where = folder / "adapter_config.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | fields))
    refused(said, "generate", tiny_llama, "--prompt", "a=x", "--adapter", f"a={folder}")
    refused(said, "merge", tiny_llama, "--adapter", folder, "--out", tmp_path / "out")
    refused(said, "lint", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: np.float32(1), "holds a value of another kind than is expected there"),
        (lambda a: a.astype(np.float64) + 1e300, "has an element that is not finite"),
    ],
    ids=["a number alone", "beyond float32"],
)
def test_an_adapters_arrays_are_numbers_of_float32(tiny_llama, adapter, tmp_path, change, said):
    """On a model and merged alike."""
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    found = {n: np.array(a) for n, a in safetensors.load(file).tensors.items()}
    name = min(found)
    safetensors.save(file, found | {name: change(found[name])})
    refused(said, "generate", tiny_llama, "--prompt", "a=x", "--adapter", f"a={folder}")
    refused(said, "merge", tiny_llama, "--adapter", folder, "--out", tmp_path / "out")


def test_nothing_is_merged_into_integers(copied, adapter, tmp_path):
    """Where the sum would be rounded away."""
    found, name = tensors(copied), "model.layers.0.self_attn.q_proj.weight"
    safetensors.save(copied / "model.safetensors", found | {name: found[name].astype(np.int8)})
    refused("is of int8, expected", "merge", copied, "--adapter", adapter, "--out", tmp_path / "out")


def test_a_folder_of_any_name_is_read(tiny_llama, tmp_path):
    """Bytes that are no UTF-8, and a new line."""
    folder = shutil.copytree(tiny_llama, f"{tmp_path}/a\udcff\nb")
    assert refpeft("generate", folder, "--prompt", "a", "--tokens", 1).exit_code == 0
