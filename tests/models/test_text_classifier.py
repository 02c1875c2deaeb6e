"""A classifier over an encoder of BERT's kind. Against transformers and peft, and differences of its own."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import dropping, save, shaken, slopes

from refpeft.errors import AttributeValueError, CapabilityError, DomainError, FormatError, ShapeError
from refpeft.formats import adapters, peft
from refpeft.formats.adapter import Adapter
from refpeft.formats.lint import lint
from refpeft.methods import Houlsby, LoRA, PTuningV2
from refpeft.models import load_classifier, load_encoder, shards
from refpeft.models.dropout import Dropout

IDS = np.random.default_rng(0).integers(0, 97, (3, 9))
SEGMENTS = (np.arange(9) > 4) * np.ones((3, 1), np.int64)
MASK = np.arange(9) < np.array([[9], [6], [1]])
LABELS = np.array([2, 0, 1])
SITES = "layers.*.attn.q,layers.*.attn.v"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A random one that transformers saved, with three labels."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=24, num_labels=3,
    )  # fmt: skip
    return save(config, tmp_path_factory.mktemp("bert"), "AutoModelForSequenceClassification")


def theirs(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()


def inputs(**more):
    """The texts, as transformers takes them."""
    torch = pytest.importorskip("torch")
    found = {"input_ids": IDS, "token_type_ids": SEGMENTS, "attention_mask": MASK.astype(np.int64), **more}
    return {name: torch.from_numpy(array) for name, array in found.items()}


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_logits_loss_and_gradients_are_transformers(bert, backend):
    """Of the whole head, to the rounding of float32."""
    other, model = theirs(bert), load_classifier(bert, backend=backend)
    out = other(**inputs(labels=LABELS))
    expected = out.logits.detach().numpy()
    got = model.host(model.logits(IDS, MASK, SEGMENTS))
    np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-18 * np.abs(expected).max())
    out.loss.backward()
    loss, gradients = model.loss(IDS, LABELS, MASK, SEGMENTS)
    assert abs(loss - out.loss.item()) < 2.0**-18 * loss
    parts = {"pooler": other.bert.pooler.dense, "classifier": other.classifier}
    assert set(gradients) == {f"{name}.{end}" for name in parts for end in ("weight", "bias")} == set(model.trained)
    for name, part in parts.items():
        for end in ("weight", "bias"):
            grad = getattr(part, end).grad.numpy()
            np.testing.assert_allclose(
                model.host(gradients[f"{name}.{end}"]), grad, rtol=0, atol=2.0**-16 * np.abs(grad).max()
            )


@pytest.mark.parametrize("train", [("pooler", "classifier"), ("classifier",), ()])
def test_gradients_are_differences(bert, train):
    """With a method in the encoder, along a direction in all arrays at once; checkpointing gives equal bits."""
    model, random = load_classifier(bert, train=train, dtype="float64", backend="reference"), np.random.default_rng(1)
    model.attach(SITES, LoRA(rank=2), random)
    shaken(model, random)
    _, gradients = model.loss(IDS, LABELS, MASK, SEGMENTS)
    again = model.loss(IDS, LABELS, MASK, SEGMENTS, checkpointing=True)[1]
    assert set(gradients) == set(model.trained)
    assert {name for name in gradients if "layers" not in name} == {
        f"{n}.{e}" for n in train for e in ("weight", "bias")
    }
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(again[name], gradient)
    slope, difference = slopes(
        model.trained, gradients, lambda: model.loss(IDS, LABELS, MASK, SEGMENTS)[0], np.random.default_rng(2)
    )
    assert abs(slope - difference) < 1e-6 * abs(slope)


def test_shards_of_a_batch_add_up_to_it(bert, monkeypatch):
    """Three rows on two threads, with dropout, paddings and segments: equal but for the order of sums."""
    model, random = load_classifier(bert, dtype="float64", backend="cpu"), np.random.default_rng(1)
    model.attach(SITES, LoRA(rank=2), random)
    shaken(model, random)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    given = {"mask": MASK, "segments": SEGMENTS, "dropout": Dropout(0.3, 0, 5)}
    loss, gradients = model.loss(IDS, LABELS, **given)
    cut = []
    monkeypatch.setattr(shards, "LEAST", 1)
    monkeypatch.setattr(shards, "summed", lambda parts, summed=shards.summed: cut.append(len(parts)) or summed(parts))
    again, parts = model.loss(IDS, LABELS, **given)
    assert cut == [2]
    assert abs(again - loss) < 2.0**-45
    for name, gradient in gradients.items():
        assert np.abs(parts[name] - gradient).max() <= 2.0**-42 * np.abs(gradient).max()
    with pytest.raises(ShapeError, match=r"mask must have the shape \(3, 9\) of the token ids, but \(4, 9\) came"):
        model.loss(IDS, LABELS, np.ones((4, 9), bool))


def test_transformers_trains_under_the_same_dropout(bert, tmp_path):
    """LoRA's with a rate of its own, and the encoder's but for that of attention, with our masks in the place of torch's."""
    pytest.importorskip("torch")
    library, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    rates = {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.5, "attention_probs_dropout_prob": 0.0}
    base = transformers.AutoModelForSequenceClassification.from_pretrained(bert, **rates)
    base.save_pretrained(tmp_path / "base")
    model, random, dropout = load_classifier(tmp_path / "base"), np.random.default_rng(1), Dropout(0.4, seed=3, step=7)
    model.attach(SITES, method := LoRA(rank=2, alpha=6), random)
    shaken(model, random)
    adapters.save(tmp_path / "ours", Adapter(method, model.arrays(), family="bert", head=model.head))
    other = library.PeftModel.from_pretrained(base, tmp_path / "ours", is_trainable=True).train()
    places = {"embeddings.dropout": "embedding.dropout", "model.dropout": "pooler.dropout"}
    for i in range(2):
        ends = {"attention.output.dropout": "attn.dropout", "output.dropout": "mlp.dropout"}
        ends |= {f"attention.self.{n}.lora_dropout.default": f"attn.{n[0]}" for n in ("query", "value")}
        places |= {f".layer.{i}.{theirs}": f"layers.{i}.{ours}" for theirs, ours in ends.items()}
    for end, place in places.items():
        (name,) = (name for name, _ in other.named_modules() if name.endswith(end))
        module, known = other.get_submodule(name), dropping(dropout, place, 0.4)
        if "lora_" not in name:
            known = dropping(dropout, place, module.p)
            assert module.p == (0.5 if place == "pooler.dropout" else 0.3)
        other.set_submodule(name, known)
    out = other(**inputs(labels=LABELS))
    out.loss.backward()
    loss, gradients = model.loss(IDS, LABELS, MASK, SEGMENTS, dropout=dropout)
    assert abs(loss - out.loss.item()) < 2.0**-18 * loss
    assert abs(loss - model.loss(IDS, LABELS, MASK, SEGMENTS)[0]) > 2.0**-10 * loss
    found = {name: p.grad.numpy() for name, p in other.named_parameters() if p.requires_grad}
    assert len(found) == len(gradients)
    its = {"query": "q", "value": "v"}
    for name, grad in found.items():
        parts = name.split(".")
        key = f"{'pooler' if 'pooler' in name else 'classifier'}.{parts[-1]}"
        if "lora_" in name:
            key = f"layers.{parts[parts.index('layer') + 1]}.attn.{its[parts[-4]]}.{parts[-3][-1].lower()}"
        np.testing.assert_allclose(gradients[key].numpy(), grad, rtol=0, atol=2.0**-14 * np.abs(grad).max())


@pytest.mark.parametrize("train", [("pooler", "classifier"), ("classifier",)])
def test_head_and_adapter_are_exchanged_with_peft(bert, tmp_path, train):
    """Both ways: peft keeps the head whole, as modules_to_save."""
    torch, library = pytest.importorskip("torch"), pytest.importorskip("peft")
    model, random, method = load_classifier(bert, train=train), np.random.default_rng(1), LoRA(rank=2, alpha=6)
    model.attach(SITES, method, random)
    shaken(model, random)
    adapter = Adapter(method, model.arrays(), family="bert", head=model.head)
    adapters.save(tmp_path / "ours", adapter)
    expected = model.logits(IDS, MASK, SEGMENTS).numpy()
    other = library.PeftModel.from_pretrained(theirs(bert), tmp_path / "ours").eval()
    with torch.no_grad():
        got = other(**inputs()).logits.numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-16 * np.abs(expected).max())
    other.save_pretrained(tmp_path / "theirs")
    read = adapters.load(tmp_path / "theirs")
    assert (read.method, set(read.head)) == (method, set(train))
    again = load_classifier(bert)
    adapters.attach(again, read)
    np.testing.assert_array_equal(again.logits(IDS, MASK, SEGMENTS).numpy(), expected)
    with pytest.raises(FormatError, match=r"has a classifier's head, but .*bert0? was read without a classifier"):
        adapters.attach(load_encoder(bert), read)


@pytest.mark.parametrize(
    ("method", "train"),
    [
        (Houlsby(reduction=4), ("pooler", "classifier")),
        (PTuningV2(tokens=3, size=8), ("pooler", "classifier")),
        (LoRA(rank=2), ("pooler",)),
    ],
    ids=repr,
)
def test_a_head_beside_what_peft_has_not_is_kept_in_our_form(bert, tmp_path, method, train):
    """To the bit; peft does not load a classifier's adapter without a classifier either."""
    model, random = load_classifier(bert, train=train), np.random.default_rng(1)
    model.attach("*.q" if isinstance(method, LoRA) else "*", method, random)
    shaken(model, random)
    adapter = Adapter(method, model.arrays(), family="bert", head=model.head)
    with pytest.raises(CapabilityError, match=r"have no place for .* beside a classifier's head"):
        peft.save(tmp_path, adapter)
    adapters.save(tmp_path, adapter)
    assert {finding.severity for finding in lint(tmp_path)} <= {"note"}
    again = load_classifier(bert)
    adapters.attach(again, adapters.load(tmp_path))
    np.testing.assert_array_equal(again.logits(IDS, MASK).numpy(), model.logits(IDS, MASK).numpy())


def test_a_head_is_drawn_over_an_encoder_that_has_none(bert, tmp_path):
    """Of as many labels as are asked for; whatever does not fit is refused in a sentence."""
    theirs(bert).bert.save_pretrained(tmp_path)
    model = load_classifier(tmp_path, labels=5, random=np.random.default_rng(0))
    assert model.logits(IDS).shape == (3, 5)
    np.testing.assert_array_equal(model.head["pooler"]["weight"], load_classifier(bert).head["pooler"]["weight"])
    with pytest.raises(FormatError, match="its classifier has no labels, but none are asked for"):
        load_classifier(tmp_path)
    with pytest.raises(CapabilityError, match="one label has nothing to tell apart, expected two at least"):
        load_classifier(tmp_path, labels=1)
    with pytest.raises(FormatError, match="its classifier has 3 labels, but 4 are asked for"):
        load_classifier(bert, labels=4)
    with pytest.raises(AttributeValueError, match="train must be of pooler, classifier, but 'head' came"):
        load_classifier(bert, train=("head",))
    with pytest.raises(DomainError, match="labels lie from 0 to 4, but 0 to 5 came"):
        model.loss(IDS, np.array([0, 5, 1]))
    with pytest.raises(ShapeError, match=r"labels are integers of shape \(3,\), but float64 of shape \(2,\) came"):
        model.loss(IDS, np.ones(2))
    with pytest.raises(ShapeError, match=r"classifier has the arrays .*\(5, 32\).*, but .*\(3, 32\).* came"):
        model.set_head(load_classifier(bert).head)
