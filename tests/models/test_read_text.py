"""Starts from a text in a model: a prompt or prefix that starts so is the text itself, read."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import save

from refpeft.errors import AttributeValueError, CapabilityError, DomainError
from refpeft.methods import Cartridge, LoRA, PrefixTuning, PromptTuning, PTuning, PTuningV2
from refpeft.models import load, load_encoder

IDS = np.random.default_rng(0).integers(0, 97, (3, 9))
TEXT = (5, 8, 13, 21, 34)
METHODS = [PromptTuning(tokens=5), PTuningV2(tokens=5, size=8), PrefixTuning(tokens=5, size=8, hidden=12)]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, saved_folder, tmp_path_factory):
    """A random model of either type."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=24)
    return saved_folder if request.param == "llama" else save(config, tmp_path_factory.mktemp("gpt2"))


def started(folder, method, text, **more):
    """The model with a method that starts from the text, in float64."""
    model = load(folder, dtype="float64", backend="reference", **more)
    model.attach("*", method, np.random.default_rng(0), text=text)
    return model


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_model_that_starts_from_a_text_has_read_it(folder, method):
    """Logits are those behind the text, in float64 to its rounding; the text that is cut or repeated is the text, too."""
    plain = load(folder, dtype="float64", backend="reference")
    for text, read in ((TEXT, TEXT), ((*TEXT, 55), TEXT), (TEXT[:3], TEXT[:3] + TEXT[:2])):
        behind = np.concatenate([np.tile(read, (3, 1)), IDS], axis=1)
        expected = plain.logits(behind)[:, 5:]
        got = started(folder, method, text).logits(IDS)
        assert np.linalg.norm(got - expected) <= 2.0**-40 * np.linalg.norm(expected)


def test_what_stood_there_before_is_not_read(saved_folder):
    """A prefix is put over a model that has another, and a prompt: it starts as over the plain one."""
    model = started(saved_folder, METHODS[2], (1, 2))
    model.attach("*", METHODS[0], np.random.default_rng(0))
    for site, method in (("*", METHODS[1]), ("layers.1.attention", METHODS[1]), ("layers.1.attention", METHODS[2])):
        model.attach(site, method, np.random.default_rng(0), text=TEXT)
        expected = started(saved_folder, METHODS[1], TEXT).arrays()["layers.1.attention"]
        for name, array in model.arrays()["layers.1.attention"].items():
            assert np.linalg.norm(array - expected[name]) <= 2.0**-40 * np.linalg.norm(expected[name])


def test_a_cartridges_first_tokens_stay_as_they_were_read(folder):
    """Their gradient is zero, that of the others the prefix's; so a step moves the others alone."""
    free, held = (started(folder, METHODS[1], TEXT), started(folder, Cartridge(tokens=5, size=8, frozen=2), TEXT))
    loss, expected = free.loss(IDS)
    again, gradients = held.loss(IDS)
    assert again == loss
    for name, gradient in gradients.items():
        assert not gradient[..., :2, :].any()
        np.testing.assert_array_equal(gradient[..., 2:, :], expected[name][..., 2:, :])


@pytest.mark.parametrize(
    ("method", "text", "error", "said"),
    [
        (LoRA(rank=2, alpha=4), TEXT, CapabilityError, "LoRA starts from no text: prompts and prefixes do."),
        (PTuning(tokens=5, hidden=4), TEXT, CapabilityError, "PTuning starts from no text"),
        (PTuningV2(tokens=5, size=8), (97,), DomainError, "token ids lie from 0 to 96, but 97 to 97 came."),
        (PromptTuning(tokens=5), (97,), AttributeValueError, "ids must be one or more integers from 0 to 96"),
        (PrefixTuning(tokens=5, size=8, hidden=4), TEXT, AttributeValueError, "a hidden layer of 4 gives no 5 rows"),
    ],
    ids=["LoRA", "PTuning", "PTuningV2", "PromptTuning", "PrefixTuning"],
)
def test_what_starts_from_no_such_text_is_refused(saved_folder, method, text, error, said):
    with pytest.raises(error, match=said):
        started(saved_folder, method, text)


def test_an_encoders_prefix_starts_from_no_text(tmp_path):
    """Its tokens look at those behind them, which a text alone has not."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = load_encoder(save(transformers.BertConfig(vocab_size=97, **small), tmp_path, "AutoModel"))
    with pytest.raises(CapabilityError, match="an encoder has not read a text until its last token"):
        model.attach("*", METHODS[1], text=TEXT)
