"""Adapters of which a seed draws a part again: what is not in the file is the same on both sides, or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from small_models import shaken

from refpeft.cli import main
from refpeft.errors import CapabilityError, FormatError, ShapeError
from refpeft.formats import adapters, peft, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.formats.lint import lint
from refpeft.methods import FourierFT, SHiRA, WaveFT
from refpeft.models import load

IDS = np.random.default_rng(0).integers(0, 256, (2, 9))
SITES = ("layers.0.attn.q", "layers.1.attn.v")


def drawn(folder, method) -> Adapter:
    model, random = load(folder), np.random.default_rng(1)
    model.attach(",".join(SITES), method, random)
    return Adapter(method, shaken(model, random, by=3).arrays())


def logits(folder, adapter) -> np.ndarray:
    model = load(folder)
    adapters.attach(model, adapter)
    return model.logits(IDS).numpy()


def changed(folder, **fields):
    config = json.loads((folder / peft.CONFIG).read_text()) | fields
    (folder / peft.CONFIG).write_text(json.dumps(config))


PATTERN = {"n_frequency_pattern": {r"layers\.\d\.self_attn.v_proj": 17}}


@pytest.mark.parametrize(
    ("kind", "fields", "length"),
    [
        ("FourierFTConfig", PATTERN, 17),
        ("WaveFTConfig", PATTERN, 17),
        ("WaveFTConfig", {"proportional_parameters": True}, 60),
    ],
)
def test_modules_with_lengths_of_their_own_are_exchanged(tiny_llama, tmp_path, kind, fields, length):
    """peft's pattern is read, each module computes with as many places as it has values, and ours loads in peft."""
    torch, theirs, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    config = getattr(theirs, kind)(
        target_modules=["q_proj", "v_proj"], n_frequency=90, init_weights=False, random_loc_seed=5, **fields
    )
    torch.manual_seed(0)
    model = theirs.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    expected = model(torch.from_numpy(IDS)).logits.detach().numpy()
    model.save_pretrained(tmp_path / "theirs")
    adapter = peft.load(tmp_path / "theirs")
    assert {len(its["values"]) for site, its in adapter.arrays.items() if site.endswith("v")} == {length}
    bound = 2.0**-15 * np.abs(expected).max()
    np.testing.assert_allclose(logits(tiny_llama, adapter), expected, rtol=0, atol=bound)
    peft.save(tmp_path / "ours", adapter)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    again = theirs.PeftModel.from_pretrained(plain, tmp_path / "ours")(torch.from_numpy(IDS)).logits.detach().numpy()
    np.testing.assert_allclose(again, expected, rtol=0, atol=bound)
    assert np.abs(expected - load(tiny_llama).logits(IDS).numpy()).max() > 64 * bound
    changed(tmp_path / "ours", n_frequency_pattern={})
    with pytest.raises(FormatError, match=r"_proj has shape \(\d+,\), but n_frequency and n_frequency_pattern say 90"):
        peft.load(tmp_path / "ours")


def test_places_of_another_seed_are_kept_in_our_form_only(tiny_llama, tmp_path):
    """peft would draw others: refused as peft's; in our own form they come back, and what the seed gives is left out."""
    adapter = drawn(tiny_llama, FourierFT(frequencies=30, seed=1))
    assert all(set(arrays) == {"values"} for arrays in adapter.arrays.values())
    others = FourierFT(frequencies=30, seed=2).init(np.random.default_rng(0), np.zeros((32, 32)))["places"]
    elsewhere = {site: arrays | {"places": others} for site, arrays in adapter.arrays.items()}
    other = Adapter(adapter.method, {SITES[0]: elsewhere[SITES[0]]})
    assert np.abs(logits(tiny_llama, other) - logits(tiny_llama, adapter)).max() > 1e-3
    with pytest.raises(
        CapabilityError, match=r"q: peft draws places from the seed 1 and keeps none, so that its files"
    ):
        peft.save(tmp_path / "refused", other)
    assert not (tmp_path / "refused").exists()
    adapters.save(tmp_path / "ours", other)
    again = adapters.load(tmp_path / "ours")
    np.testing.assert_array_equal(again.arrays[SITES[0]]["places"], others)
    np.testing.assert_array_equal(logits(tiny_llama, again), logits(tiny_llama, other))


def test_a_wavelet_that_is_another_in_peft_is_refused_both_ways(tiny_llama, tmp_path):
    """Its file is not what the method computes; our own form keeps the adapter, and a merge draws its places."""
    adapter = drawn(tiny_llama, WaveFT(coefficients=30, wavelet="coif4"))
    with pytest.raises(CapabilityError, match="peft has filters of its own by the name coif4"):
        peft.save(tmp_path / "refused", adapter)
    adapters.save(tmp_path / "ours", adapter)
    assert [f.severity for f in lint(tmp_path / "ours")] == ["note"]
    merge = ["merge", tiny_llama, "--adapter", tmp_path / "ours", "--out", tmp_path / "merged"]
    assert CliRunner().invoke(main, [*map(str, merge)]).exit_code == 0
    expected = logits(tiny_llama, adapter)
    merged = load(tmp_path / "merged").logits(IDS).numpy()
    np.testing.assert_allclose(merged, expected, rtol=0, atol=2.0**-15 * np.abs(expected).max())
    peft.save(tmp_path / "theirs", drawn(tiny_llama, WaveFT(coefficients=30)))
    for fields, said in [
        ({"wavelet_family": "coif5"}, "at layers.0.attn.q peft has filters of its own by the name coif5"),
        ({"use_idwt": False}, "WAVEFT with use_idwt false, peft_version null is not read"),
    ]:
        changed(tmp_path / "theirs", **{"wavelet_family": "db1", "use_idwt": True} | fields)
        with pytest.raises(CapabilityError, match=said):
            peft.load(tmp_path / "theirs")
    changed(tmp_path / "theirs", use_idwt=True, wavelet_family="db38")
    with pytest.raises(FormatError, match=r"wavelet must be one of db1, .* but 'db38' came"):
        peft.load(tmp_path / "theirs")


@pytest.mark.parametrize("seed", [None, 2**64, 1.5])
def test_a_seed_that_torch_does_not_take_is_refused(tiny_llama, tmp_path, seed):
    """As in peft, where it is an error of torch's."""
    peft.save(tmp_path, drawn(tiny_llama, FourierFT(frequencies=4)))
    assert [f.severity for f in lint(tmp_path) if "seed" in f.what] == ["note"]
    changed(tmp_path, random_loc_seed=seed)
    with pytest.raises(FormatError, match=r"FourierFT: seed must be (an integer|from -2\^63 to 2\^64 - 1), but"):
        peft.load(tmp_path)


def test_places_that_lie_outside_of_a_matrix_are_refused(tiny_llama, tmp_path):
    """A file of rows and columns fits matrices of many shapes; on another, or as flat places, none is taken for a neighbour's."""
    method, model = SHiRA(rank=1), load(tiny_llama)
    peft.save(tmp_path, drawn(tiny_llama, method))
    adapter = peft.load(tmp_path)
    v = adapter.arrays[SITES[1]]
    assert {n: a.shape for n, a in v.items()} == {"values": (48,), "indices": (2, 48)}
    with pytest.raises(ShapeError, match="columns must be from 0 to 31, but 0 to 47 came"):
        model.attach(SITES[1], method, arrays={SITES[1]: v | {"indices": np.array([[0] * 48, [*range(48)]])}})
    with pytest.raises(ShapeError, match=r"rows and columns must have shape \(2, k\), but came as \(48,\)"):
        model.attach(SITES[1], method, arrays={SITES[1]: v | {"indices": np.arange(48)}})
    whole = np.zeros((16, 32), np.float32)
    np.testing.assert_array_equal(np.flatnonzero(method.merge(whole, v)), v["indices"][0] * 32 + v["indices"][1])
    np.testing.assert_array_equal(method.unmerge(method.merge(whole, v), v), whole)
    tensors = dict(safetensors.load(tmp_path / peft.TENSORS).tensors)
    flat = {n: a[0] if n.endswith("indices") else a for n, a in tensors.items()}
    safetensors.save(tmp_path / peft.TENSORS, flat)
    with pytest.raises(
        CapabilityError, match=r"at layers\.0\.attn\.q peft keeps a row and a column for each value, unlike"
    ):
        peft.load(tmp_path)
