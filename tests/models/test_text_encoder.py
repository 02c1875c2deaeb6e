"""BERT's kind: segments, norms behind sublayers, every token seen. Against transformers and peft, and differences of its own."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from small_models import by_site, save, shaken

from refpeft.cli import main
from refpeft.errors import CapabilityError, DomainError, FormatError, ShapeError
from refpeft.formats import adapters, peft, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.memory.models import read
from refpeft.methods import IA3, DoRA, LayerNormTuning, LoRA, Pfeiffer, methods
from refpeft.models import load, load_encoder
from refpeft.models.dropout import Dropout

IDS = np.random.default_rng(0).integers(0, 97, (3, 9))
SEGMENTS = (np.arange(9) > 4) * np.ones((3, 1), np.int64)
MASK = np.arange(9) < np.array([[9], [6], [1]])
SITES = "layers.*.attn.q,layers.*.attn.v,layers.1.attn.o,layers.*.mlp.up,layers.0.mlp.down"
METHODS = [LoRA(rank=2, alpha=6), DoRA(rank=2, alpha=6), IA3(), LayerNormTuning()]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A random one that transformers saved, without a head."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=24,
    )  # fmt: skip
    return save(config, tmp_path_factory.mktemp("bert"), "AutoModel")


def theirs(folder, dtype="float32", **more):
    """It, in transformers, without dropout."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModel.from_pretrained(folder, dtype=dtype, **more).eval()


def inputs():
    """The texts, as transformers takes them."""
    torch = pytest.importorskip("torch")
    found = {"input_ids": IDS, "token_type_ids": SEGMENTS, "attention_mask": MASK.astype(np.int64)}
    return {name: torch.from_numpy(array) for name, array in found.items()}


def attached(folder, method, pattern, backend="reference"):
    """The model with a method's arrays off their start."""
    model, random = load_encoder(folder, dtype="float64", backend=backend), np.random.default_rng(1)
    model.attach(pattern, method, random)
    return shaken(model, random)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_hidden_states_are_transformers(bert, tmp_path, backend):
    """Of two texts in one and padding, in float32 to its rounding; saved with a head, and with BERT's first names, too."""
    transformers = pytest.importorskip("transformers")
    expected = theirs(bert)(**inputs()).last_hidden_state.detach().numpy()
    transformers.AutoModelForMaskedLM.from_pretrained(bert).save_pretrained(tmp_path)
    tensors = safetensors.load(tmp_path / "model.safetensors").tensors
    old = {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): a for n, a in tensors.items()}
    assert "bert.encoder.layer.0.output.LayerNorm.gamma" in old
    safetensors.save(tmp_path / "model.safetensors", old)
    counted = theirs(bert, add_pooling_layer=False).num_parameters()
    for folder in (bert, tmp_path):
        model = load_encoder(folder, backend=backend)
        assert model.shape.parameters() == counted
        hidden = model.host(model.hidden(IDS, MASK, SEGMENTS))
        np.testing.assert_allclose(hidden, expected, rtol=0, atol=2.0**-18 * np.abs(expected).max())
    plain = theirs(bert)(inputs()["input_ids"]).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(model.host(model.hidden(IDS)), plain, rtol=0, atol=2.0**-18 * np.abs(plain).max())


@pytest.mark.parametrize(
    "method", [LoRA(rank=2, alpha=6), DoRA(rank=2, alpha=6), IA3()], ids=lambda m: type(m).__name__
)
def test_gradients_and_files_are_pefts(bert, tmp_path, method):
    """In float64, of a random combination of the hidden states; peft's own file reads back equal, and merged it is the same."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = attached(bert, method, "*" if isinstance(method, LayerNormTuning) else SITES)
    dhidden = np.random.default_rng(2).normal(size=(3, 9, 32))
    hidden, vjp = model.with_vjp(IDS, MASK, SEGMENTS)
    gradients = vjp(dhidden)
    adapter = Adapter(method, model.arrays(), family="bert")
    adapters.save(tmp_path / "ours", adapter, base=str(bert))
    assert json.loads((tmp_path / "ours" / peft.CONFIG).read_text())["task_type"] == "FEATURE_EXTRACTION"
    other = hf.PeftModel.from_pretrained(theirs(bert, "float64"), tmp_path / "ours", is_trainable=True).double()
    states = other(**inputs()).last_hidden_state
    np.testing.assert_allclose(hidden, states.detach().numpy(), rtol=0, atol=2.0**-38)
    (states * torch.from_numpy(dhidden)).sum().backward()
    peft.save(tmp_path / "gradients", Adapter(method, by_site(gradients), family="bert"))
    wanted = {n.replace(".default", ""): p.grad.numpy() for n, p in other.named_parameters() if p.requires_grad}
    for name, gradient in safetensors.load(tmp_path / "gradients" / peft.TENSORS).tensors.items():
        expected = wanted.pop(name if name in wanted else f"{name}.weight")
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=2.0**-36 * np.abs(expected).max())
    assert not wanted

    other.save_pretrained(tmp_path / "theirs")
    again = adapters.load(tmp_path / "theirs")
    assert (again.method, again.family) == (method, "bert")
    for site, arrays in adapter.arrays.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(again.arrays[site][name], array)
    lint = CliRunner().invoke(main, ["lint", str(tmp_path / "theirs"), "--model", str(bert), "--json"])
    assert [f for f in json.loads(lint.stdout) if f["severity"] != "note"] == []
    if method.not_mergeable:
        return
    merge = ["merge", bert, "--adapter", tmp_path / "ours", "--out", tmp_path / "merged"]
    assert CliRunner().invoke(main, [*map(str, merge)]).exit_code == 0
    merged = theirs(tmp_path / "merged")(**inputs()).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(merged, hidden, rtol=0, atol=2.0**-16 * np.abs(hidden).max())


DROPOUT = Dropout(0.3, seed=3, step=7)
KINDS = {
    "lora": (SITES, {"rank": 2}),
    "houlsby": ("*", {"reduction": 4}),
    "parallel_adapter": ("*", {"reduction": 4}),
    "prompt": ("prompt", {"tokens": 3}),
    "prefix": ("layers.*.attention", {"tokens": 3, "size": 8, "hidden": 5}),
    "ln_tuning": ("*", {}),
    "bitfit": (SITES, {}),
    "ptuning_v2": ("layers.1.attention", {"tokens": 3, "size": 8}),
}


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_every_kind_are_differences(bert, name):
    """Central ones along a random direction of all that is trained, in float64, with dropout; checkpointing and torch give the
    same.
    """
    random, (pattern, numbers) = np.random.default_rng(3), KINDS[name]
    model = attached(bert, methods()[name](**numbers), pattern)
    dhidden = random.normal(size=(3, 9, 32))
    given = IDS, MASK, SEGMENTS
    hidden, vjp = model.with_vjp(*given, dropout=DROPOUT)
    gradients = vjp(dhidden)
    assert np.abs(hidden - model.hidden(*given)).max() > 0.1
    assert hidden.shape == dhidden.shape
    assert set(gradients) == set(model.trained)
    others = model.with_vjp(*given, checkpointing=True, dropout=DROPOUT)[1](dhidden)
    torchs = attached(bert, methods()[name](**numbers), pattern, "torch")
    found = torchs.with_vjp(*given, dropout=DROPOUT)[1](torchs.asarray(dhidden))
    along, sums, h = {n: random.normal(size=a.shape) for n, a in model.trained.items()}, [], 2.0**-20
    for n, gradient in gradients.items():
        assert np.any(gradient)
        np.testing.assert_array_equal(others[n], gradient)
        np.testing.assert_allclose(np.asarray(found[n]), gradient, rtol=0, atol=2.0**-36 * np.abs(gradient).max())
    for step in (h, -2 * h):
        for n, array in model.trained.items():
            array += step * along[n]
        sums.append(np.sum(dhidden * model.with_vjp(*given, dropout=DROPOUT)[0]))
    slope = sum(np.sum(gradients[n] * along[n]) for n in along)
    assert abs(slope - (sums[0] - sums[1]) / (2 * h)) < 1e-7 * abs(slope)


def test_padding_is_not_seen_and_what_is_wrong_is_said(bert, tmp_path):
    """Hidden states of a text are those that it has alone; ids, masks and configurations that are none are refused."""
    model = load_encoder(bert, dtype="float64", backend="reference")
    alone = model.hidden(IDS[1:2, :6], None, SEGMENTS[1:2, :6])
    np.testing.assert_allclose(model.hidden(IDS, MASK, SEGMENTS)[1:2, :6], alone, rtol=0, atol=2.0**-40)
    model.attach("layers.*.attn.q", methods()["eva"](rank=2), batches=[IDS])
    np.testing.assert_allclose(model.hidden(IDS, MASK, SEGMENTS)[1:2, :6], alone, rtol=0, atol=2.0**-40)
    with pytest.raises(CapabilityError, match="LoRAGA starts from the gradients of a loss, which an encoder has as"):
        model.attach("layers.*.attn.q", methods()["lora_ga"](rank=2), batches=[IDS])
    with pytest.raises(CapabilityError, match="reads the sum stands in a model that has its norms in front only"):
        model.attach("layers.*.mlp.out", Pfeiffer(reduction=4))
    with pytest.raises(ShapeError, match=r"mask must have the shape \(3, 9\) of the token ids, but \(3, 8\) came"):
        model.hidden(IDS, MASK[:, 1:])
    with pytest.raises(DomainError, match="segment ids lie from 0 to 1, but 0 to 2 came"):
        model.hidden(IDS, MASK, 2 * SEGMENTS)
    with pytest.raises(DomainError, match="has positions for 24 tokens, but 25 came"):
        model.hidden(np.zeros((1, 25), np.int64))
    with pytest.raises(CapabilityError, match=r"is an encoder, which predicts no tokens: with --task classification"):
        load(bert)
    with pytest.raises(FormatError, match="is an encoder, but memory is counted for decoders"):
        read(str(bert))
    config = json.loads((bert / "config.json").read_text())
    for change, said in (
        ({"position_embedding_type": "relative_key"}, 'position_embedding_type is "relative_key", but "absolute" is'),
        ({"is_decoder": True}, "is_decoder is true, but false is computed"),
        ({"hidden_dropout_prob": 1}, "hidden_dropout_prob must be a number from 0 and below 1, but 1 came"),
    ):
        shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises((CapabilityError, FormatError), match=said):
            load_encoder(tmp_path)
