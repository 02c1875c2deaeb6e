"""Adapters exchanged with peft, both ways: same logits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refpeft.errors import CapabilityError, FormatError
from refpeft.formats import peft as files
from refpeft.formats import safetensors
from refpeft.methods import DoRA, HiRA, LoHa, LoRA, RsLoRA
from refpeft.models import load

METHODS = [LoRA(rank=2, alpha=6), RsLoRA(rank=2, alpha=6), DoRA(rank=2, alpha=6), LoHa(rank=2, alpha=6)]
SITES = ("layers.0.attn.q", "layers.1.attn.v", "layers.1.mlp.down")
IDS = np.random.default_rng(0).integers(0, 97, (2, 9))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random Llama that transformers saved."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


def drawn(base, method) -> files.Adapter:
    """An adapter off its start."""
    random, model = np.random.default_rng(1), load(base)
    arrays = {}
    for site in SITES:
        start = method.init(random, model.sites[site].arrays["weight"].numpy().astype(np.float64))
        arrays[site] = {n: (a + random.normal(size=a.shape) * 0.3).astype(np.float32) for n, a in start.items()}
    return files.Adapter(method, arrays)


def ours(base, adapter) -> np.ndarray:
    model = load(base)
    model.attach(adapter.pattern, adapter.method, arrays=adapter.arrays)
    return model.logits(IDS).numpy()


def theirs(base, folder):
    torch, peft, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), folder)
    return model, model(torch.from_numpy(IDS)).logits.detach().numpy()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_peft_and_refpeft_load_what_the_other_wrote(base, method, tmp_path):
    """Every tensor has its place in peft, the logits are equal to float32's rounding, and peft's own file reads back equal."""
    adapter = drawn(base, method)
    files.save(tmp_path / "ours", adapter, base=str(base))
    model, logits = theirs(base, tmp_path / "ours")
    np.testing.assert_allclose(ours(base, adapter), logits, rtol=0, atol=2.0**-15 * np.abs(logits).max())
    assert np.abs(logits - load(base).logits(IDS).numpy()).max() > 0.1
    model.save_pretrained(tmp_path / "theirs")
    again = files.load(tmp_path / "theirs")
    assert again.method == method
    assert {s: set(a) for s, a in again.arrays.items()} == {s: set(a) for s, a in adapter.arrays.items()}
    for site, arrays in adapter.arrays.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(again.arrays[site][name], array)


def test_fields_that_change_nothing_are_kept(tmp_path):
    """A configuration read and written again has them all."""
    arrays = {"layers.0.attn.q": {"a": np.ones((2, 4), np.float32), "b": np.ones((3, 2), np.float32)}}
    files.save(tmp_path, files.Adapter(LoRA(rank=2, alpha=6), arrays))
    config = json.loads((tmp_path / files.CONFIG).read_text())
    config |= {"revision": "abc", "a_field_of_the_future": None, "lora_dropout": 0.1}
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    files.save(tmp_path / "again", files.load(tmp_path))
    assert json.loads((tmp_path / "again" / files.CONFIG).read_text()) == config


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"peft_type": "VERA"}, CapabilityError, r"peft_type is 'VERA', but LOHA and LORA are read"),
        (
            {"rank_pattern": {"q_proj": 4}},
            CapabilityError,
            r'rank_pattern is {"q_proj": 4}, which is not understood here',
        ),
        ({"fan_in_fan_out": True}, CapabilityError, "fan_in_fan_out is true"),
        ({"bias": "all"}, CapabilityError, 'bias is "all"'),
        ({"a_field_of_the_future": 7}, CapabilityError, "a_field_of_the_future is 7"),
        ({"use_dora": True}, FormatError, "layers.0.attn.q lacks magnitude"),
        ({"r": "two"}, FormatError, "rank and alpha are needed as numbers"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, change, error, message):
    """By field, never silently."""
    arrays = {"layers.0.attn.q": {"a": np.ones((2, 4), np.float32), "b": np.ones((3, 2), np.float32)}}
    files.save(tmp_path, files.Adapter(LoRA(rank=2, alpha=6), arrays))
    config = json.loads((tmp_path / files.CONFIG).read_text()) | change
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        files.load(tmp_path)


def test_a_tensor_that_belongs_nowhere_is_an_error(tmp_path):
    """So is a folder without an adapter, a method that peft's files are not written for, and a site that peft lacks."""
    arrays = {"layers.0.attn.q": {"a": np.ones((2, 4), np.float32), "b": np.ones((3, 2), np.float32)}}
    files.save(tmp_path, files.Adapter(LoRA(rank=2, alpha=6), arrays))
    tensors = safetensors.load(tmp_path / files.TENSORS).tensors
    safetensors.save(tmp_path / files.TENSORS, dict(tensors) | {"base_model.model.score.weight": np.ones(2)})
    with pytest.raises(
        FormatError, match=r"the tensor 'base_model.model.score.weight' belongs to nothing that LORA has"
    ):
        files.load(tmp_path)
    with pytest.raises(FormatError, match=r"has no adapter_config.json, expected an adapter of peft"):
        files.load(tmp_path / "nothing")
    with pytest.raises(CapabilityError, match=r"written for LoRA, RsLoRA, DoRA, LoHa, but HiRA came"):
        files.save(tmp_path / "hira", files.Adapter(HiRA(), arrays))
    with pytest.raises(FormatError, match=r"peft has no module for the site 'head'"):
        files.save(tmp_path / "head", files.Adapter(LoRA(), {"head": arrays["layers.0.attn.q"]}))
