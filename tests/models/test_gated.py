"""A gated prompt in the uppermost layers: one gate for all heads, where it cannot stand, and what peft's files hold of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_models import save, shaken
from test_sites import IDS, KINDS, tiny

from refpeft.convert.quantise import Settings
from refpeft.errors import CapabilityError, FormatError, ShapeError
from refpeft.formats import adapters, peft
from refpeft.formats.adapter import Adapter
from refpeft.methods import AdaptionPrompt
from refpeft.models import load

LAYER = {"tokens": 3, "adapted": 2, "gates": "layer"}


def test_a_gate_of_all_heads_is_one_number(monkeypatch):
    """Its gradient is a difference of the loss, from a cache the logits are the same, and equal gates of heads give them too."""
    monkeypatch.setitem(KINDS, "adaption_prompt", ("*", LAYER))
    model, random, cache = tiny("adaption_prompt"), np.random.default_rng(3), []
    assert [n for n in model.trained if n.endswith("gate")] == [f"layers.{i}.attn.prompt.gate" for i in (1, 2)]
    whole = model.logits(IDS)
    parts = [model.logits(IDS[:, at:to], cache) for at, to in ((0, 4), (4, 5), (5, 7))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=2.0**-44 * np.abs(whole).max())
    each = {site: its | {"gate": np.repeat(its["gate"], 4)} for site, its in model.arrays().items()}
    other = model.twin()
    other.attach(",".join(each), AdaptionPrompt(tokens=3, adapted=2, size=4), arrays=each)
    np.testing.assert_array_equal(other.logits(IDS), whole)
    _, gradients = model.loss(IDS)
    again = model.loss(IDS, checkpointing=True)[1]
    assert all(np.array_equal(again[n], g) and g.shape == model.trained[n].shape for n, g in gradients.items())
    along, h, losses = {n: random.normal(size=a.shape) for n, a in model.trained.items()}, 2.0**-17, []
    slope = sum(float(np.sum(g * along[n])) for n, g in gradients.items())
    for move in (h, -2 * h):
        for n, array in model.trained.items():
            array += move * along[n]
        losses.append(model.score(IDS))
    assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(slope, rel=2.0**-20)


def test_it_stands_in_the_uppermost_layers_of_a_model_whose_projections_have_no_bias(tmp_path):
    """Elsewhere it is refused, in a sentence; over a matrix in 4 bits it goes through what this decodes to."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    folder = save(transformers.LlamaConfig(**sizes), tmp_path / "llama")
    model, method = load(folder), AdaptionPrompt(**LAYER)
    for sites in ("layers.0.attn.prompt", "layers.0.attn.prompt,layers.2.attn.prompt"):
        with pytest.raises(
            ShapeError, match=r"stands in the uppermost layers, but at layers\.0\.attn\.prompt.* it was"
        ):
            model.attach(sites, method)
    model.attach("*", AdaptionPrompt(tokens=3, size=16), np.random.default_rng(0))
    assert [site for site in model.sites if site.endswith("prompt")] == [f"layers.{i}.attn.prompt" for i in range(3)]
    in_bits = load(folder, quantise=Settings())
    in_bits.attach("*", method, np.random.default_rng(0))
    shaken(in_bits, np.random.default_rng(1))
    assert len(in_bits.loss(IDS)[1]) == 4
    for config in (
        transformers.Qwen2Config(**sizes, num_key_value_heads=2),
        transformers.GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2),
    ):
        other = load(save(config, tmp_path / config.model_type))
        with pytest.raises(
            CapabilityError, match=r"adaption_prompt\.attention stands at no site of a model: it takes base"
        ):
            other.attach("*", method)


def test_of_gates_of_heads_ours_is_the_only_form(saved_folder, tmp_path):
    """peft has one for a layer; a file that says another number of layers is refused."""
    model, method = load(saved_folder), AdaptionPrompt(tokens=3, adapted=1, size=8)
    model.attach("*", method, np.random.default_rng(0))
    adapter = Adapter(method, model.arrays())
    with pytest.raises(
        CapabilityError, match=r"peft's files have no place for AdaptionPrompt\(.*gates='heads'\) as it is"
    ):
        peft.save(tmp_path / "refused", adapter)
    adapters.save(tmp_path / "ours", adapter)
    assert adapters.load(tmp_path / "ours").method == method
    model.attach("*", AdaptionPrompt(**LAYER), np.random.default_rng(0))
    peft.save(tmp_path / "theirs", Adapter(AdaptionPrompt(**LAYER), model.arrays()))
    config = json.loads((tmp_path / "theirs" / peft.CONFIG).read_text())
    assert config["target_modules"] == "self_attn"
    for change, said in (
        ({"adapter_layers": 1}, "adapter_layers is 1, but 2 layers have a prompt"),
        ({"adapter_len": 5}, r"adaption_prompt' of shape \(1, 3, 32\) is no prompt of AdaptionPrompt\(tokens=5"),
    ):
        (tmp_path / "theirs" / peft.CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(FormatError, match=said):
            peft.load(tmp_path / "theirs")
