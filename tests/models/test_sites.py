"""Methods at every kind of site, against differences of the loss, transformers and peft; and what a model's file may say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_models import save

from refpeft.errors import CapabilityError, FormatError, ShapeError
from refpeft.memory.decoder import Decoder
from refpeft.methods import methods
from refpeft.methods.prefix import PrefixTuning, PTuningV2
from refpeft.methods.prompt import PromptTuning
from refpeft.models import LanguageModel, load
from refpeft.models.places import place

TINY = Decoder(name="tiny", width=16, layers=3, heads=4, kv_heads=2, head_size=4, inner=24, vocabulary=19, tied=True)
IDS = np.random.default_rng(0).integers(0, 19, (2, 7))
KINDS = {
    "prompt": ("prompt", {"tokens": 3}),
    "cpt": ("prompt", {"tokens": 3, "epsilon": 900.0}),
    "ptuning": ("prompt", {"tokens": 3, "hidden": 5}),
    "ptuning_lstm": ("prompt", {"tokens": 3, "hidden": 4}),
    "ptuning_v2": ("layers.*.attention", {"tokens": 3, "size": 4}),
    "prefix": ("layers.*.attention", {"tokens": 3, "size": 4, "hidden": 5}),
    "houlsby": ("*", {"reduction": 4}),
    "pfeiffer": ("layers.*.mlp.out", {"reduction": 4}),
    "adapter_plus": ("*", {"reduction": 4}),
    "scaled_parallel_adapter": ("*", {"reduction": 4}),
    "adaption_prompt": ("*", {"tokens": 3, "adapted": 2, "size": 4}),
    "bitfit": ("layers.*.attn.q,layers.1.mlp.down", {}),
    "ia3": ("layers.*.attn.k,layers.*.attn.v", {}),
}


def tiny(name: str, backend="reference", dtype="float64", pattern=None) -> LanguageModel:
    """A random decoder with a method's arrays off their start."""
    random = np.random.default_rng(1)
    sizes = {"embedding": (TINY.vocabulary, TINY.width), "norm": (TINY.width,)}
    for i in range(TINY.layers):
        sizes |= {f"layers.{i}.{part}.norm": (TINY.width,) for part in ("attn", "mlp")}
        sizes |= {f"layers.{i}.{place(m.site)}": (m.o, m.i) for m in TINY.matrices()}
    weights = {n: (random.normal(size=s) * 0.3 + n.endswith("norm")).astype(dtype) for n, s in sizes.items()}
    model = LanguageModel(TINY, weights, eps=1e-5, backend=backend)
    where, numbers = KINDS[name]
    model.attach(pattern or where, methods()[name](**numbers), random)
    for array in model.trained.values():
        array += model.asarray(0.3 * random.normal(size=array.shape))
    return model


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_every_kind_are_differences_of_the_loss(name):
    """Central differences along a random direction of all that is trained, in float64, with a mask."""
    model, random = tiny(name), np.random.default_rng(3)
    mask = random.random((2, 6)) < 0.7
    along = {n: random.normal(size=a.shape) for n, a in model.trained.items()}
    _, gradients = model.loss(IDS, mask)
    assert set(gradients) == set(along)
    assert all(np.any(g) for g in gradients.values())
    slope, losses, h = sum(np.sum(gradients[n] * along[n]) for n in along), [], 2.0**-17
    for step in (h, -2 * h):
        for n, array in model.trained.items():
            array += step * along[n]
        losses.append(model.score(IDS, mask))
    assert abs(slope - (losses[0] - losses[1]) / (2 * h)) < 1e-7 * abs(slope)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_the_same_with_a_cache_and_with_checkpointing(name):
    """Logits token by token, and gradients bit for bit; torch's gradients, taken through these calls, are the reference's."""
    model, cache = tiny(name), []
    whole = model.logits(IDS)
    assert whole.shape == (2, 7, 19)
    parts = [model.logits(IDS[:, start:stop], cache) for start, stop in ((0, 3), (3, 4), (4, 7))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=2.0**-40)
    (loss, gradients), (again, others) = model.loss(IDS), model.loss(IDS, checkpointing=True)
    assert loss == again
    for n, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, others[n])
    pytest.importorskip("torch")
    loss, theirs = tiny(name, "torch").loss(IDS)
    assert abs(loss - again) < 2.0**-40
    for n, gradient in gradients.items():
        np.testing.assert_allclose(np.asarray(theirs[n]), gradient, rtol=0, atol=2.0**-36)


def test_a_prefix_in_some_layers_gives_and_costs_no_gradient_below():
    """Only the second layer has one: its arrays alone get gradients."""
    model = tiny("ptuning_v2", pattern="layers.1.attention")
    assert sorted(model.loss(IDS)[1]) == ["layers.1.attention.prefix_k", "layers.1.attention.prefix_v"]


def test_a_prompt_takes_the_place_of_one_that_is_encoded():
    """The encoder goes with it, and nothing of it is trained any more."""
    model = tiny("ptuning")
    model.attach("prompt", PromptTuning(tokens=2), np.random.default_rng(0))
    assert sorted(model.loss(IDS)[1]) == sorted(model.trained) == ["prompt.prompt"]


@pytest.mark.parametrize("kind", ["prompt", "prefix", "prefix through a perceptron"])
def test_virtual_tokens_are_pefts(saved, kind):
    """Logits behind them, and the loss's gradients, in float32 to its rounding: the same trained arrays in both."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    folder, theirs = saved
    ids, random = np.random.default_rng(0).integers(0, 97, (2, 9)), np.random.default_rng(1)
    ours = load(folder)
    if kind == "prompt":
        settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        ours.attach("prompt", PromptTuning(tokens=3), random)
    elif kind == "prefix":
        settings = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        ours.attach("*", PTuningV2(tokens=3, size=8), random)
    else:
        settings = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=6, token_dim=16
        )
        ours.attach("*", PrefixTuning(tokens=3, size=8, hidden=6), random)
    model = peft.get_peft_model(theirs, settings)
    encoder, trained = model.prompt_encoder["default"], {n: ours.host(a) for n, a in ours.trained.items()}
    flat = {f"layers.{i}.attention.prefix_{m}": (i, j) for i in range(2) for j, m in enumerate("kv")}

    def joined(arrays):
        """(3, 2 L g d) as peft has it, of each layer's (g, 3, d)."""
        return np.concatenate([arrays[n].transpose(1, 0, 2).reshape(3, -1) for n in flat], axis=1)

    pairs = {"encoder.w1": "transform.0.weight", "encoder.b1": "transform.0.bias"}
    pairs |= {
        "encoder.w2": "transform.2.weight",
        "encoder.b2": "transform.2.bias",
        "encoder.embedding": "embedding.weight",
    }
    own = dict(encoder.named_parameters())
    if kind == "prompt":
        own["embedding.weight"].data = torch.from_numpy(trained["prompt.prompt"])
    elif kind == "prefix":
        own["embedding.weight"].data = torch.from_numpy(joined(trained))
    else:
        for n, theirs_ in pairs.items():
            own[theirs_].data = torch.from_numpy(trained[n])
    labels = torch.from_numpy(np.where(np.arange(9) == 0, -100, ids))
    result = model(input_ids=torch.from_numpy(ids), labels=labels)
    expected = result.logits.detach().numpy()[:, -9:]
    np.testing.assert_allclose(ours.host(ours.logits(ids)), expected, rtol=0, atol=2.0**-17 * np.abs(expected).max())
    loss, gradients = ours.loss(ids)
    assert abs(loss - result.loss.item()) < 2.0**-18 * loss
    result.loss.backward()
    got = {n: ours.host(g) for n, g in gradients.items()}
    if kind == "prompt":
        compared = [(got["prompt.prompt"], own["embedding.weight"].grad)]
    elif kind == "prefix":
        compared = [(joined(got), own["embedding.weight"].grad)]
    else:
        compared = [(got[n], own[theirs_].grad) for n, theirs_ in pairs.items()]
    for gradient, wanted in compared:
        np.testing.assert_allclose(gradient, wanted.numpy(), rtol=0, atol=2.0**-15 * float(wanted.abs().max()))


SCALED = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, stated": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "mscale": 0.7, "mscale_all_dim": 0.2},
}  # fmt: skip
SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "tie_word_embeddings": True}


@pytest.mark.parametrize("kind", ["qwen2", "biases everywhere", *SCALED])
def test_biases_and_scaled_positions_are_transformers(tmp_path, kind):
    """Logits of 40 tokens in float32, to its rounding; where there are biases, also at the start of what stands over them."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    if kind == "qwen2":
        config = transformers.Qwen2Config(**SIZES)
    elif kind in SCALED:
        config = transformers.LlamaConfig(
            **SIZES, rope_scaling=SCALED[kind], rope_theta=100.0, max_position_embeddings=64
        )
    else:
        config = transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)
    folder = save(config, tmp_path / "model")
    ids = np.random.default_rng(0).integers(0, 97, (2, 40))
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.from_numpy(ids)).logits.numpy()
    ours = load(folder)
    np.testing.assert_allclose(ours.host(ours.logits(ids)), theirs, rtol=0, atol=2.0**-16 * np.abs(theirs).max())
    if kind in SCALED:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": None}))
        plain = load(folder)
        assert np.abs(plain.host(plain.logits(ids)) - theirs).max() > 2.0**-8 * np.abs(theirs).max()
    else:
        for method in (methods()["bitfit"](), methods()["lora"](rank=2)):
            ours.attach("layers.*.attn.q", method, np.random.default_rng(0))
            found = ours.host(ours.logits(ids))
            np.testing.assert_allclose(found, theirs, rtol=0, atol=2.0**-16 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_attention_slides_as_transformers_has_it(tmp_path, kind):
    """Over 5 tokens in every block, or in the last: logits, also from a cache, and a gradient; a prefix in it is refused."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = {
        "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=5),
        "qwen2": lambda: transformers.Qwen2Config(
            **SIZES, sliding_window=5, use_sliding_window=True, max_window_layers=1
        ),
    }[kind]()
    folder = save(config, tmp_path / "model")
    other, ids = transformers.AutoModelForCausalLM.from_pretrained(folder), torch.from_numpy(IDS)
    model, whole = load(folder), other(ids).logits.detach().numpy()
    bound = 2.0**-16 * np.abs(whole).max()
    np.testing.assert_allclose(model.host(model.logits(IDS)), whole, rtol=0, atol=bound)
    cache: list = []
    parts = [model.host(model.logits(IDS[:, start:stop], cache)) for start, stop in ((0, 3), (3, 4), (4, 7))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=bound)
    model.windows = ()
    assert np.abs(model.host(model.logits(IDS)) - whole).max() > 2.0**-8 * np.abs(whole).max()

    model, site = load(folder), "layers.0.attn.k"
    if kind == "qwen2":
        model.attach(site, methods()["bitfit"]())
        other(ids, labels=ids).loss.backward()
        expected = other.model.layers[0].self_attn.k_proj.bias.grad.numpy()
        found = model.loss(IDS)[1][f"{site}.bias"].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-15 * np.abs(expected).max())
    model.attach("*", PTuningV2(tokens=2, size=8), np.random.default_rng(0))
    with pytest.raises(CapabilityError, match="a prefix slides out of sight of 5 tokens, which is not computed"):
        model.logits(IDS)


def test_what_cannot_stand_at_a_site_is_said(saved_folder, tmp_path):
    """One sentence each."""
    model, known = tiny("prompt"), methods()
    with pytest.raises(
        ShapeError, match=r"'layers.0.attn.q' matches none of the sites for prompt.embed, which are prompt."
    ):
        model.attach("layers.0.attn.q", PromptTuning(tokens=2))
    with pytest.raises(ShapeError, match="arrays for encoder are needed, but for prompt they came"):
        model.attach("prompt", known["ptuning"](tokens=2), arrays={"prompt": {}})
    for name, said in (
        ("ln_tuning", "nn.layer_norm stands at no site of a model"),
        ("gated_lora", "GatedLoRA has a gate that looks at all tokens of a sequence"),
    ):
        with pytest.raises(CapabilityError, match=said):
            model.attach("*", known[name]())
    pair = {"a": np.ones((2, 16)), "b": np.ones((16, 2))}
    prefix = dict.fromkeys(("prefix_k", "prefix_v"), np.ones((2, 3, 5)))
    bottleneck = {"down": np.ones((4, 15)), "up": np.ones((16, 4)), "down_bias": np.ones(4), "up_bias": np.ones(16)}
    for name, site, arrays, said in (
        (
            "lora",
            "layers.0.attn.q",
            pair | {"a": np.ones((2, 15))},
            r"layers\.0\.attn\.q: lora\.linear: a has shape \(2, 15\)",
        ),
        ("lora", "layers.0.attn.q", {"a": pair["a"]}, r"layers\.0\.attn\.q: lora\.linear needs b, but a came"),
        ("lora", "layers.0.attn.q", pair | {"c": np.ones(1)}, r"layers\.0\.attn\.q: lora\.linear has no input c"),
        ("prompt", "prompt", {"prompt": np.ones((2, 15))}, r"prompt: prompt\.embed: prompt has shape \(2, 15\)"),
        ("ptuning_v2", "layers.0.attention", prefix, "prefix_k has shape"),
        ("houlsby", "layers.0.mlp.out", bottleneck, "down has shape"),
    ):
        with pytest.raises(ShapeError, match=said):
            model.attach(site, known[name](), arrays={site: arrays})
    config = json.loads((saved_folder / "config.json").read_text())
    for scaling, error in (({"type": "linear"}, FormatError), ({"type": "longrope", "factor": 2.0}, CapabilityError)):
        folder = tmp_path / scaling["type"]
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling}))
        (folder / "model.safetensors").write_bytes((saved_folder / "model.safetensors").read_bytes())
        with pytest.raises(error, match=scaling["type"]):
            load(folder)
