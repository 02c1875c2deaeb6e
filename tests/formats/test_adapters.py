"""An adapter in refpeft's own form: whatever peft's files have no place for comes back as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refpeft.errors import FormatError
from refpeft.formats import adapters, peft
from refpeft.formats.adapter import Adapter
from refpeft.methods import DVoRA, Houlsby, LoRA, PiSSA, RandLoRA, WaveFT
from refpeft.models import load

IDS = np.random.default_rng(0).integers(0, 256, (2, 9))


@pytest.mark.parametrize(
    "method",
    [
        DVoRA(rank=4),
        RandLoRA(rank=4),
        WaveFT(coefficients=7, wavelet="coif4"),
        PiSSA(rank=2, alpha=3),
        Houlsby(reduction=4),
    ],
    ids=repr,
)
def test_what_was_attached_comes_back(tiny_llama, tmp_path, method):
    """Frozen arrays and places among them, and a base weight that the method changed: equal logits, to the bit."""
    model = load(tiny_llama, backend="reference")
    pattern = "layers.*.attn.q" if method.operation.endswith(".linear") else "*"
    model.attach(pattern, method, np.random.default_rng(0))
    for array in model.trained.values():
        array += np.random.default_rng(1).normal(size=array.shape).astype(array.dtype)
    adapters.save(tmp_path / "adapter", Adapter(method, model.arrays()), base="x")
    assert adapters.is_there(tmp_path / "adapter")
    found, again = adapters.load(tmp_path / "adapter"), load(tiny_llama, backend="reference")
    assert found.method == method
    again.attach(found.pattern, found.method, arrays=found.arrays)
    np.testing.assert_array_equal(again.logits(IDS), model.logits(IDS))
    assert np.abs(again.logits(IDS) - load(tiny_llama, backend="reference").logits(IDS)).max() > 2.0**-12


def test_what_peft_has_is_in_pefts_form(tmp_path):
    """And is read from it."""
    arrays = {"layers.0.attn.q": {"a": np.ones((2, 4), np.float32), "b": np.ones((3, 2), np.float32)}}
    adapters.save(tmp_path, Adapter(LoRA(rank=2), arrays))
    assert (tmp_path / peft.CONFIG).exists()
    assert not (tmp_path / adapters.CONFIG).exists()
    assert adapters.load(tmp_path).method == LoRA(rank=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "nosuch"}, "a method and settings are expected, got"),
        ({"version": 2}, "version 1, a method"),
        ({"settings": {"rank": 0}}, "DVoRA: rank must be at least 1, but 0 came"),
        ({"settings": {"rang": 1}}, "unexpected keyword argument 'rang'"),
    ],
)
def test_what_is_not_an_adapter_is_refused(tmp_path, change, said):
    """By what was expected."""
    adapters.save(tmp_path, Adapter(DVoRA(rank=2), {"layers.0.attn.q": {"a": np.ones(3, np.float32)}}))
    config = json.loads((tmp_path / adapters.CONFIG).read_text()) | change
    (tmp_path / adapters.CONFIG).write_text(json.dumps(config))
    with pytest.raises(FormatError, match=said):
        adapters.load(tmp_path)


def test_an_adapter_without_tensors_is_refused(tmp_path):
    """As a file that was cut."""
    adapters.save(tmp_path, Adapter(DVoRA(rank=2), {}))
    with pytest.raises(FormatError, match="there is no tensor, expected an adapter's"):
        adapters.load(tmp_path)
    (tmp_path / adapters.TENSORS).write_bytes(b"abc")
    with pytest.raises(FormatError):
        adapters.load(tmp_path)
