"""MAM: a prefix and adapters beside it, as one method."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import shaken

from refpeft.errors import AttributeValueError, CapabilityError, ShapeError
from refpeft.formats import adapterhub, adapters, peft
from refpeft.formats.adapter import Adapter
from refpeft.formats.lint import lint
from refpeft.methods import MAM, FlatMAM, LoRA, ParallelAdapter, PrefixTuning
from refpeft.models import load
from refpeft.ops import prefix

IDS = np.random.default_rng(0).integers(0, 256, (2, 9))
METHOD = MAM(tokens=3, size=8, hidden=5)


def model_of(folder, *methods):
    """A model with methods, each at its sites, drawn one after the other."""
    model, random = load(folder, backend="reference"), np.random.default_rng(0)
    for method in methods:
        model.attach(getattr(method, "sites", "*"), method, random)
    return model


def test_it_is_what_the_two_are_beside_each_other(tiny_llama):
    """The same logits, loss and gradients, to the bit, and what is trained has a learning rate."""
    both = model_of(tiny_llama, ParallelAdapter(), PrefixTuning(tokens=3, size=8, hidden=5))
    model = model_of(tiny_llama, METHOD)
    np.testing.assert_array_equal(model.logits(IDS), both.logits(IDS))
    (loss, gradients), (other, theirs) = model.loss(IDS), both.loss(IDS)
    assert (loss, set(gradients)) == (other, set(theirs))
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, theirs[name])
    assert {name.rpartition(".")[2] for name in model.trained} == set(METHOD.learning_rates(1.0))


def test_it_is_kept_and_read_as_one(tiny_llama, tmp_path):
    """Flat, without its perceptron, to the bit; over what stood there before, and over a part of the layers."""
    model = model_of(tiny_llama, METHOD)
    flat, arrays = model.kept(METHOD)
    assert flat == FlatMAM(tokens=3, size=8)
    adapters.save(tmp_path, Adapter(flat, arrays))
    read = adapters.load(tmp_path)
    assert read.method == flat
    assert {finding.severity for finding in lint(tmp_path)} == {"note"}
    again = model_of(tiny_llama, LoRA(rank=2))
    for site in [site for site in again.sites if again.sites[site].trained]:
        again.sites[site] = again.bare(site)
    adapters.attach(again, read)
    np.testing.assert_array_equal(again.logits(IDS), model.logits(IDS))
    with pytest.raises(CapabilityError, match="peft's files have no place for FlatMAM"):
        peft.save(tmp_path / "peft", read)


def test_adapterhub_has_its_logits(tiny_llama):
    """With a mask of its own and positions counted from behind the prefix; see docs/findings/adapters-prefix-sdpa.md."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    library = pytest.importorskip("adapters")
    flat, arrays = shaken(model_of(tiny_llama, METHOD), np.random.default_rng(1)).kept(METHOD)
    model = load(tiny_llama, backend="reference")
    adapters.attach(model, Adapter(flat, arrays))
    shaken(model, np.random.default_rng(2))
    other = transformers.LlamaForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    library.init(other)
    parts = library.PrefixTuningConfig(flat=True, prefix_length=3), library.ParBnConfig(reduction_factor=2)
    other.add_adapter("mam", config=library.ConfigUnion(*parts), set_active=True)
    found, arrays = dict(other.eval().named_parameters()), model.arrays()
    keys, values = (np.stack([arrays[f"layers.{i}.attention"][n] for i in range(2)]) for n in ("prefix_k", "prefix_v"))
    tensors = {name: prefix.together(keys, values).ravel() for name in found if name.endswith(".control_trans")}
    assert len(tensors) == 1
    for i in range(2):
        at = f"model.layers.{i}.output_adapters.adapters.mam."
        tensors |= {f"{at}{adapterhub.ARRAYS[n]}": array for n, array in arrays[f"layers.{i}.mlp.out"].items()}
    with torch.no_grad():
        for name, array in tensors.items():
            found[name].copy_(torch.from_numpy(np.asarray(array)))
        got = other(torch.from_numpy(IDS), position_ids=torch.arange(3, 12)[None]).logits.numpy()
    expected = model.logits(IDS)
    assert np.abs(expected - load(tiny_llama, backend="reference").logits(IDS)).max() > 0.1
    np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-17 * np.abs(expected).max())


def test_what_is_not_both_is_refused(tiny_llama):
    """A part of the arrays, and numbers that the adapter does not take."""
    flat, arrays = model_of(tiny_llama, METHOD).kept(METHOD)
    model = load(tiny_llama)
    with pytest.raises(
        ShapeError, match=r"arrays for layers\.0\.attention, layers\.1.attention are needed, but for none they came"
    ):
        model.attach("*", flat, arrays={site: its for site, its in arrays.items() if "mlp" in site})
    with pytest.raises(ShapeError, match=r"matches none of the sites for adapter\.bottleneck"):
        model.attach("*", flat, arrays={site: its for site, its in arrays.items() if "mlp" not in site})
    with pytest.raises(AttributeValueError, match="reduction must be at least 1, but 0 came"):
        MAM(reduction=0)
