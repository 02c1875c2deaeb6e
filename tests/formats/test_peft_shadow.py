"""Shadow, exchanged with peft: what moves it in each block, and the small model beside."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_models import by_site, dropping, save, shaken, slopes

from refpeft.errors import CapabilityError, FormatError, ShapeError
from refpeft.formats import adapters, peft, peft_shadow, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.formats.lint import lint
from refpeft.methods import LoRA, Shadow
from refpeft.models import load
from refpeft.models.dropout import Dropout

IDS = np.random.default_rng(0).integers(0, 97, (2, 9))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random Llama with biases in attention, as Qwen2's."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return save(config, tmp_path_factory.mktemp("base"))


DEEP = Shadow(rank=3, alpha=0.7, width=5, depth=2, auxiliary=0.3, dropout=0.4)


def made(base, method=DEEP, **options):
    """A model with a shadow off its start."""
    model = load(base, **options)
    model.attach("*", method, np.random.default_rng(1))
    return shaken(model, np.random.default_rng(2), by=0.1)


@pytest.mark.parametrize("method", [DEEP, Shadow(rank=2, alpha=0.5), Shadow(rank=2, auxiliary=0)], ids=repr)
def test_peft_has_the_logits_loss_and_gradients_of_what_is_written(base, method, tmp_path):
    """Of every array, under the small model's own loss; and what peft saves of it reads back equal."""
    torch, theirs, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    model = made(base, method)
    adapter = Adapter(method, model.arrays())
    adapters.save(tmp_path / "ours", adapter)
    expected, (loss, gradients) = model.logits(IDS).numpy(), model.loss(IDS)
    assert np.abs(expected - load(base).logits(IDS).numpy()).max() > 0.1
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    other = theirs.PeftModel.from_pretrained(plain, tmp_path / "ours", is_trainable=True).eval()
    got = other(torch.from_numpy(IDS)).logits.detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-15 * np.abs(expected).max())
    out = other(torch.from_numpy(IDS), labels=torch.from_numpy(IDS))
    out.loss.backward()
    assert abs(loss - out.loss.item()) < 2.0**-18 * loss
    assert abs(loss - model.score(IDS) - method.auxiliary * out.shadow_loss.item()) < 2.0**-18 * loss
    found = {name: p.grad for name, p in other.named_parameters() if p.requires_grad}
    there = safetensors.load(tmp_path / "ours" / peft.TENSORS).tensors
    assert set(there) == set(found)
    ours = peft_shadow.encode(Adapter(method, by_site(gradients)))[1]
    for name, grad in found.items():
        grad = np.zeros(ours[name].shape) if grad is None else grad.numpy()
        np.testing.assert_allclose(ours[name], grad, rtol=0, atol=2.0**-12 * max(np.abs(grad).max(), 1e-3))
    other.save_pretrained(tmp_path / "theirs")
    again = adapters.load(tmp_path / "theirs")
    assert again.method == method
    assert set(again.arrays) == set(adapter.arrays)
    for site, its in adapter.arrays.items():
        for name, array in its.items():
            np.testing.assert_array_equal(again.arrays[site][name], array)
    adapters.attach(read := load(base), again)
    np.testing.assert_array_equal(read.logits(IDS).numpy(), expected)
    assert {finding.severity for finding in lint(tmp_path / "theirs")} == {"note"}


def test_peft_trains_under_the_same_dropout(base, tmp_path):
    """Of what hidden states and the shadow differ by, with our masks in the place of torch's."""
    torch, theirs, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    model, dropout = made(base), Dropout(0.0, seed=3, step=7)
    adapters.save(tmp_path, Adapter(DEEP, model.arrays()))
    loss, gradients = model.loss(IDS, dropout=dropout)
    assert abs(loss - model.loss(IDS)[0]) > 2.0**-10 * loss
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    other = theirs.PeftModel.from_pretrained(plain, tmp_path, is_trainable=True).train()
    for name, module in other.named_modules():
        if name.endswith("shadow_dropout"):
            assert module["default"].p == 0.4
            layer = name.split(".layers.")[1].split(".")[0]
            module["default"] = dropping(dropout, f"layers.{layer}.shadow.inject", 0.4)
    out = other(
        torch.from_numpy(IDS), labels=torch.from_numpy(IDS)
    )  # the mask of the last token, too, is drawn behind the others
    out.loss.backward()
    assert abs(loss - out.loss.item()) < 2.0**-18 * loss
    found = {name: p.grad for name, p in other.named_parameters() if p.requires_grad}
    ours = peft_shadow.encode(Adapter(DEEP, by_site(gradients)))[1]
    for name, grad in found.items():
        grad = np.zeros(ours[name].shape) if grad is None else grad.numpy()
        np.testing.assert_allclose(ours[name], grad, rtol=0, atol=2.0**-12 * max(np.abs(grad).max(), 1e-3))


def test_gradients_are_differences_and_a_cache_keeps_the_small_model_too(base):
    """In float64, along a direction in all arrays at once; with checkpointing equal bits, token by token equal logits."""
    model, random = made(base, dtype="float64", backend="reference"), np.random.default_rng(4)
    _, gradients = model.loss(IDS)
    again = model.loss(IDS, checkpointing=True)[1]
    assert set(gradients) == set(model.trained)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(again[name], gradient)
    slope, difference = slopes(model.trained, gradients, lambda: model.loss(IDS)[0], random)
    assert abs(slope - difference) < 1e-6 * abs(slope)
    whole, cache = model.logits(IDS), []
    parts = [model.logits(IDS[:, :4], cache), *(model.logits(IDS[:, i : i + 1], cache) for i in range(4, 9))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=2.0**-40 * np.abs(whole).max())


def test_blocks_that_lie_together_may_have_one(base, tmp_path):
    """As peft has it; those that do not, a deeper one than the model, and another family are refused."""
    torch, theirs, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    method = Shadow(rank=3, alpha=0.7)
    arrays = made(base, method).arrays()
    some = {site: its for site, its in arrays.items() if not site.startswith("layers.2.")}
    adapters.save(tmp_path, Adapter(method, some))
    adapters.attach(model := load(base), adapters.load(tmp_path))
    other = theirs.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path)
    expected = model.logits(IDS).numpy()
    got = other(torch.from_numpy(IDS)).logits.detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-15 * np.abs(expected).max())
    torn = {site: its for site, its in arrays.items() if not site.startswith("layers.1.")}
    with pytest.raises(ShapeError, match=r"blocks that lie together, but through \[0, 2\] it was asked for"):
        load(base).attach("*", method, arrays=torn)
    with pytest.raises(ShapeError, match=r"mirrors from 1 to 3 blocks, but 4 were asked for"):
        load(base).attach("*", Shadow(depth=4))
    with pytest.raises(ShapeError, match=r"shadow\.norm mirrors a layer with the arrays .*\(32,\).*, but .*\(31,\)"):
        load(base).attach("*", method, arrays=arrays | {"shadow.norm": {"weight": np.ones(31)}})
    model.attach("layers.*.attn.q", LoRA(rank=2), np.random.default_rng(0))
    assert np.isfinite(model.score(IDS))


@pytest.mark.parametrize(
    ("fields", "extra", "error", "message"),
    [
        ({"shadow_model": "other"}, {}, CapabilityError, 'shadow_model is "other", which is not understood here'),
        ({"share_embeddings": False}, {}, CapabilityError, "share_embeddings is false"),
        ({"shadow_hidden_size": 16}, {}, CapabilityError, "shadow_hidden_size is 16"),
        ({"r": 0}, {}, FormatError, "rank must be at least 1, but 0 came"),
        ({"shadow_dropout": 1}, {}, FormatError, "dropout must be from 0 and below 1, but 1.0 came"),
        ({"auxiliary_loss_weight": -1}, {}, FormatError, "auxiliary must be 0 or more, but -1.0 came"),
        ({"update_hidden_size": "x"}, {}, FormatError, "width must be an integer, but 'x' came"),
        ({}, {"base_model.shadow_head.default.weight": 1}, FormatError, "shadow_head.* belongs to nothing that SHADOW"),
        ({}, {"base_model.model.model.layers.0.shadow_up.default.weight": None}, FormatError, "inject lacks up"),
    ],
)
def test_what_is_not_computed_is_refused(base, tmp_path, fields, extra, error, message):
    """In one sentence."""
    method = Shadow(rank=2)
    adapters.save(tmp_path, Adapter(method, made(base, method).arrays()))
    config = json.loads((tmp_path / peft.CONFIG).read_text())
    (tmp_path / peft.CONFIG).write_text(json.dumps(config | fields))
    there = dict(safetensors.load(tmp_path / peft.TENSORS).tensors)
    there |= {name: np.ones(1, np.float32) for name in extra}
    safetensors.save(tmp_path / peft.TENSORS, {n: a for n, a in there.items() if extra.get(n, 0) is not None})
    with pytest.raises(error, match=message):
        peft.load(tmp_path)
