"""A decoder made of operations, against transformers and peft, and against differences of its own loss."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refpeft.errors import CapabilityError, DomainError, FormatError, ShapeError
from refpeft.formats import safetensors
from refpeft.memory.decoder import Decoder
from refpeft.methods import LoRA, methods
from refpeft.models import LanguageModel, load
from refpeft.models.places import place

README = Path(__file__).parents[2] / "README.md"
HALF = LoRA(rank=2, alpha=1)
TINY = Decoder(name="tiny", width=16, layers=3, heads=4, kv_heads=2, head_size=4, inner=24, vocabulary=19, tied=True)
IDS = np.random.default_rng(0).integers(0, 19, (2, 7))


def weights(shape: Decoder, dtype="float64") -> dict[str, np.ndarray]:
    """Random ones, gains near one."""
    random = np.random.default_rng(1)
    sizes = {"embedding": (shape.vocabulary, shape.width), "norm": (shape.width,)}
    for i in range(shape.layers):
        for part in ("attn", "mlp"):
            sizes[f"layers.{i}.{part}.norm"] = (shape.width,)
        for m in shape.matrices():
            sizes[f"layers.{i}.{place(m.site)}"] = (m.o, m.i)
    return {n: (random.normal(size=s) * 0.3 + n.endswith("norm")).astype(dtype) for n, s in sizes.items()}


def adapters(model: LanguageModel, sites, rank=2) -> dict[str, dict[str, np.ndarray]]:
    """LoRA's a and b, b off zero."""
    random, found = np.random.default_rng(2), {}
    for site in sites:
        o, i = model.sites[site].arrays["weight"].shape
        found[site] = {"a": random.normal(size=(rank, i)), "b": random.normal(size=(o, rank))}
    return found


def adapted(backend="reference", dtype="float64", sites=("layers.1.attn.q", "layers.2.mlp.down")) -> LanguageModel:
    model = LanguageModel(TINY, weights(TINY, dtype), eps=1e-5, backend=backend)
    model.attach(",".join(sites), HALF, arrays=adapters(model, sites))
    return model


@pytest.mark.parametrize("site", ["layers.0.attn.q", "layers.1.attn.k", "layers.1.attn.v", "layers.0.attn.o"])
def test_gradients_are_differences_of_the_loss(site):
    """Central differences along a random direction, in float64; the site lies under all or some of the blocks."""
    mask = np.random.default_rng(3).random((2, 6)) < 0.7

    def model(step):
        model = LanguageModel(TINY, weights(TINY), eps=1e-5)
        arrays = adapters(model, [site])
        model.attach(site, HALF, arrays={site: {n: a + step * along[n] for n, a in arrays[site].items()}})
        return model

    random = np.random.default_rng(4)
    along = {"a": random.normal(size=(2, 16)), "b": random.normal(size=(len(weights(TINY)[site]), 2))}
    _, gradients = model(0).loss(IDS, mask)
    slope = sum(np.sum(gradients[f"{site}.{n}"] * along[n]) for n in along)
    h = 2.0**-17
    difference = (model(h).loss(IDS, mask)[0] - model(-h).loss(IDS, mask)[0]) / (2 * h)
    assert abs(slope - difference) < 1e-8 * abs(slope)


def test_only_what_is_trained_gets_gradients():
    """By site and array; an attached layer whose arrays are all integers or none trains nothing."""
    model = adapted()
    _, gradients = model.loss(IDS)
    assert sorted(gradients) == [f"layers.{i}.{s}.{n}" for i, s in ((1, "attn.q"), (2, "mlp.down")) for n in "ab"]
    assert LanguageModel(TINY, weights(TINY), eps=1e-5).loss(IDS)[1] == {}


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_checkpointing_gives_equal_bits(backend):
    """A block computed again is the block."""
    if backend == "torch":
        pytest.importorskip("torch")
    model = adapted(backend, "float32")
    (loss, gradients), (again, others) = model.loss(IDS), model.loss(IDS, checkpointing=True)
    assert loss == again
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(np.asarray(gradient), np.asarray(others[name]))


def test_a_cache_gives_the_logits_of_the_whole():
    """Tokens by one, by some and all at once, to the rounding of float64."""
    model, cache = adapted(), []
    whole = model.logits(IDS)
    parts = [model.logits(IDS[:, start:stop], cache) for start, stop in ((0, 3), (3, 4), (4, 7))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=2.0**-40)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_backends_agree(backend):
    """With the reference, loss and gradients, to the rounding of float64."""
    if backend == "torch":
        pytest.importorskip("torch")
    (loss, gradients), (other, others) = adapted().loss(IDS), adapted(backend).loss(IDS)
    assert abs(loss - other) < 2.0**-40
    for name, gradient in gradients.items():
        np.testing.assert_allclose(np.asarray(others[name]), gradient, rtol=0, atol=2.0**-40)


def test_logits_and_gradients_are_transformers_and_pefts(saved):
    """LoRA on q and v from the same a and b, in float32: to its rounding, at every position."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    folder, theirs = saved
    ids = np.random.default_rng(0).integers(0, 97, (3, 11))
    ours = load(folder)
    np.testing.assert_allclose(
        ours.logits(ids).numpy(), theirs(torch.from_numpy(ids)).logits.detach().numpy(), rtol=2.0**-16, atol=2.0**-16
    )
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    lora = peft.get_peft_model(theirs, settings)
    arrays = {}
    for i in range(2):
        for name in "qv":
            site = f"layers.{i}.attn.{name}"
            found = adapters(ours, [site])[site]
            layer = getattr(lora.base_model.model.model.layers[i].self_attn, f"{name}_proj")
            layer.lora_A["default"].weight.data = torch.from_numpy(found["a"]).float()
            layer.lora_B["default"].weight.data = torch.from_numpy(found["b"]).float()
            arrays[site] = found
    ours.attach("layers.*.attn.q,layers.*.attn.v", LoRA(rank=2, alpha=4), arrays=arrays)
    loss, gradients = ours.loss(ids)
    wanted = lora(input_ids=torch.from_numpy(ids), labels=torch.from_numpy(ids)).loss
    wanted.backward()
    assert abs(loss - wanted.item()) < 2.0**-18 * abs(loss)
    for i in range(2):
        for name in "qv":
            layer = getattr(lora.base_model.model.model.layers[i].self_attn, f"{name}_proj")
            for n, theirs_ in (("a", layer.lora_A), ("b", layer.lora_B)):
                expected = theirs_["default"].weight.grad.numpy()
                got = gradients[f"layers.{i}.attn.{name}.{n}"].numpy()
                np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-16 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["dora", "vera", "ia3", "oft", "loha", "randlora", "pissa"])
def test_any_linear_method_attaches_and_trains(name):
    """Each as it is configured by default, at one site: a gradient of its shape for every trained array, and not all zero."""
    method = methods()[name]()
    shape = replace(TINY, width=64, heads=4, kv_heads=4, head_size=16, inner=64)
    model = LanguageModel(shape, weights(shape), eps=1e-5)
    model.attach("layers.1.attn.q", method, np.random.default_rng(0))
    _, gradients = model.loss(IDS)
    assert {n: g.shape for n, g in gradients.items()} == {n: a.shape for n, a in model.trained.items()}
    assert any(np.any(g) for g in gradients.values())


def test_the_readmes_training_lowers_the_loss(saved, capsys):
    """The lines as they stand there, on a smaller model."""
    source = next(
        b for b in re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S) if "models import" in b
    )
    exec(re.sub(r'load\(".*?"', f"load({os.fspath(saved[0])!r}", source).replace("1000", "97"), {})
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) >= 5
    assert losses[-1] < losses[0]


def test_a_real_models_logits_are_transformers(smollm2, read_once):
    """SmolLM2-135M from the same GGUF file, at every position."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        os.path.dirname(smollm2), gguf_file=os.path.basename(smollm2), dtype=torch.float32
    )
    ids = np.random.default_rng(0).integers(0, 49152, (1, 12))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(
        load(smollm2).logits(ids).numpy(), expected, rtol=0, atol=2.0**-16 * np.abs(expected).max()
    )


def test_wrong_calls_say_what_was_expected(tmp_path):
    """One sentence each."""
    model = LanguageModel(TINY, weights(TINY), eps=1e-5)
    with pytest.raises(ShapeError, match=r"matches none of the sites for lora.linear, which are layers.0.attn.q, "):
        model.attach("layers.*.attn.query", HALF)
    with pytest.raises(ShapeError, match=r"arrays for layers.0.attn.q are needed, but for none they came"):
        model.attach("layers.0.attn.q", HALF, arrays={})
    with pytest.raises(DomainError, match=r"token ids lie from 0 to 18, but 0 to 19 came"):
        model.logits(np.array([[0, 19]]))
    with pytest.raises(ShapeError, match=r"integers of shape \(n, s\), but float64 of shape \(2,\) came"):
        model.logits(np.zeros(2))
    with pytest.raises(FormatError, match="There is no model"):
        load(tmp_path / "nothing")
    safetensors.save(tmp_path / "model.safetensors", {"lm_head.weight": np.ones((8, 8), np.float32)})
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,'
        ' "intermediate_size": 8, "vocab_size": 8, "rope_scaling": {"rope_type": "dynamic"}}'
    )
    with pytest.raises(CapabilityError, match="positions are scaled"):
        load(tmp_path)
