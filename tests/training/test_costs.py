"""``refpeft evaluate --cost``: tokens and bytes are counted, a merged adapter is the adapter; time is not judged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from small_models import save

from refpeft.cli import main
from refpeft.convert.quantise import Settings
from refpeft.formats import adapters
from refpeft.formats.peft import Adapter
from refpeft.methods import IA3, DoRA, Houlsby, LoRA, PromptTuning, PTuningV2
from refpeft.models import load
from refpeft.training import costs

METHODS = {
    "lora": (LoRA(rank=2, alpha=4), "layers.*.attn.q,layers.*.attn.v"),
    "prompt": (PromptTuning(tokens=3), "*"),
    "prefix": (PTuningV2(tokens=5, size=8), "*"),
    "houlsby": (Houlsby(reduction=4), "*"),
}


def moved(model, method, sites):
    """An adapter that does something: its arrays at the start, and noise."""
    random, twin = np.random.default_rng(0), model.twin()
    twin.attach(sites, method, random)
    arrays = {
        site: {n: (a + 0.2 * random.normal(size=a.shape)).astype(np.float32) for n, a in given.items()}
        for site, given in twin.arrays().items()
    }
    return Adapter(method, arrays)


def test_what_adapters_cost_is_counted(tiny_llama, tmp_path):
    """Of the context and of what is kept, exactly; merged, LoRA keeps a whole model, and the loss is the same."""
    model = load(tiny_llama, backend="torch")
    arguments = ["evaluate", tiny_llama, "--data", tmp_path / "text.txt", "--sequence", 24, "--batch", 2, "--rows", 2]
    (tmp_path / "text.txt").write_text("In the beginning there was a matrix. " * 4)
    for name, (method, sites) in METHODS.items():
        adapters.save(tmp_path / name, moved(model, method, sites))
        arguments += ["--adapter", tmp_path / name]
    arguments += ["--cost", "--rounds", 6, "--backend", "torch", "--json"]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    names = ["", *(str(tmp_path / n) for n in METHODS)]
    names.insert(2, f"{tmp_path / 'lora'}, merged")
    assert [row["adapter"] for row in rows] == names
    assert [row["context"] for row in rows] == [0, 0, 0, 3, 5, 0]
    parameters = {
        "lora": 2 * 2 * (32 + 32 + 32 + 16),
        "prompt": 3 * 32,
        "prefix": 2 * 2 * 5 * 16,
        "houlsby": 4 * (2 * 32 * 8 + 32 + 8),
    }
    whole = 2 * 256 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32) + 32
    expected = [0, 4 * parameters["lora"], 4 * whole, *(4 * parameters[n] for n in ("prompt", "prefix", "houlsby"))]
    assert [row["bytes"] for row in rows] == expected
    assert [row["share"] for row in rows] == [b / (4 * whole) for b in expected]
    assert all(row["rounds"] == 6 and -1 < row["low"] <= row["overhead"] <= row["high"] for row in rows)
    assert abs(rows[2]["loss"] - rows[1]["loss"]) < 2.0**-16 < 2.0**-10 < abs(rows[1]["loss"] - rows[0]["loss"])


@pytest.mark.parametrize(("method", "backend"), [(LoRA(rank=2), "cpu"), (IA3(), "torch"), (DoRA(rank=2), "torch")])
@pytest.mark.parametrize("quantise", [None, Settings()], ids=["dense", "4 bits"])
def test_a_merged_adapter_computes_what_the_adapter_does(tmp_path_factory, method, backend, quantise):
    """Where the base has biases too, which a method may scale with the outputs, and over matrices in 4 bits."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = load(save(config, tmp_path_factory.mktemp("qwen")), backend=backend, quantise=quantise)
    adapter, twin, ids = moved(model, method, "layers.*.attn.?"), model.twin(), np.arange(24).reshape(2, 12)
    twin.attach(adapter.pattern, adapter.method, arrays=adapter.arrays)
    adapted, merged = (m.host(m.logits(ids)) for m in (twin, costs.merged(model, adapter)))
    base = model.host(model.logits(ids))
    assert np.abs(merged - adapted).max() < 2.0**-12 * np.abs(base).max() < np.abs(adapted - base).max()
