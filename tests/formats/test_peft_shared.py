"""Frozen arrays that modules share: drawn once for a model, in one piece in peft's files, and refused where they are not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_models import shaken, slopes

from refpeft.errors import CapabilityError, FormatError, ShapeError
from refpeft.formats import adapters, peft, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.formats.lint import lint
from refpeft.methods import DVoRA, Lily, PVeRA, RandLoRA, TinyLoRA, UniLoRA, VBLoRA, VeRA
from refpeft.models import load, shards
from refpeft.training.costs import kept

SITES = ("layers.0.attn.q", "layers.1.attn.q", "layers.1.attn.v", "layers.1.mlp.down")
IDS = np.random.default_rng(0).integers(0, 256, (2, 9))


def attached(folder, method, seeds=(1,)):
    """A model with the method, off its start, at all sites at once, or at as many parts of them as there are seeds."""
    model = load(folder, backend="reference")
    for part, seed in zip(np.array_split(SITES, len(seeds)), seeds):
        model.attach(",".join(part), method, np.random.default_rng(seed))
    return shaken(model, np.random.default_rng(2))


@pytest.mark.parametrize("method", [VeRA(rank=3), PVeRA(rank=3), DVoRA(rank=3), RandLoRA(rank=3)], ids=repr)
def test_frozen_arrays_are_drawn_once_and_every_site_has_its_corner(tiny_llama, method):
    """As large as the largest site needs, one array for two sites of a shape, and what is kept is the whole."""
    model = attached(tiny_llama, method)
    arrays, shapes = model.arrays(), [model.weight(site).shape for site in SITES]
    assert len(set(shapes)) > 1
    whole = method.corners(tuple(np.max(shapes, axis=0)))
    for name in whole:
        (array,) = {id(arrays[site][name]): arrays[site][name] for site in SITES}.values()
        assert array.shape == whole[name]
        for site, shape in zip(SITES, shapes):
            corner = model.sites[site].arrays[name]
            assert corner.shape == method.corners(shape)[name]
            np.testing.assert_array_equal(corner, array[tuple(map(slice, corner.shape))])
        assert model.sites[SITES[0]].arrays[name] is model.sites[SITES[1]].arrays[name]
    weight, layer = model.weight(SITES[0]), model.sites[SITES[0]]
    alone = method.init(np.random.default_rng(1), weight)
    assert {n: a.shape for n, a in alone.items() if n in whole} == method.corners(shapes[0])
    own = {name: layer.arrays[name] for name in layer.brought}
    np.testing.assert_array_equal(method.merge(weight, arrays[SITES[0]]), method.merge(weight, own))


@pytest.mark.parametrize(
    ("method", "shared", "own"), [(VBLoRA(bank=6, length=8, chosen=3), "vectors", 2), (UniLoRA(length=30), "theta", 0)]
)
def test_a_bank_that_layers_share_is_trained_by_all_of_them(tiny_llama, method, shared, own):
    """There is one, its gradient is a difference of the loss, and it is still one where it is attached again."""
    model, random = load(tiny_llama, dtype="float64", backend="reference"), np.random.default_rng(1)
    model.attach(",".join(SITES), method, random)
    shaken(model, random)
    (name,) = (n for n in model.trained if n.endswith(shared))
    assert len(model.trained) == own * len(SITES) + 1
    _, gradients = model.loss(IDS)
    assert set(gradients) == set(model.trained)
    slope, difference = slopes(model.trained, {name: gradients[name]}, lambda: model.score(IDS), random)
    assert abs(slope - difference) < 1e-5 * abs(slope)
    again = load(tiny_llama, dtype="float64", backend="reference")
    again.attach(",".join(SITES), method, arrays=model.arrays())
    assert set(again.trained) == set(model.trained)
    again.attach(SITES[0], VeRA(rank=2), random)
    assert f"{SITES[1]}.{shared}" in again.loss(IDS)[1]


def test_indices_are_dealt_to_a_models_layers_as_peft_deals_them(tiny_llama, tmp_path):
    """The same ones from the same seed, so that every number of theta is used about as often as another; a file without them
    is refused.
    """
    theirs, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    method = UniLoRA(rank=2, length=30, seed=9)
    model = attached(tiny_llama, method)
    names = [peft.module_of(site, "llama") for site in SITES]
    config = theirs.UniLoraConfig(target_modules=names, r=2, theta_d_length=30, proj_seed=9)
    other = theirs.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    for site, name in zip(SITES, names):
        layer, its = other.base_model.model.get_submodule(name), model.arrays()[site]
        for ours, part in (("a", "A"), ("b", "B")):
            index, scale = (getattr(layer, f"unilora_{n}_{part}")["default"].numpy() for n in ("indices", "scales"))
            np.testing.assert_array_equal(index, its[f"index_{ours}"])
            np.testing.assert_allclose(scale, its[f"scale_{ours}"], rtol=2.0**-22, atol=0)
    other.save_pretrained(tmp_path)
    with pytest.raises(
        CapabilityError, match=r"save_indices is false, so that indices .* dealt again by proj_seed to all"
    ):
        peft.load(tmp_path)


def test_sites_that_share_nothing_have_no_place_in_peft(tiny_llama, tmp_path):
    """Of two draws, peft has room for one: both are kept in refpeft's own form, to the bit, where one draw is kept once."""
    method = VeRA(rank=3)
    model, once = (attached(tiny_llama, method, seeds) for seeds in ((1, 3), (1,)))
    adapter = Adapter(method, model.arrays())
    with pytest.raises(CapabilityError, match="peft has one vera_A for all modules, but sites have a of their own"):
        peft.save(tmp_path / "peft", adapter)
    adapters.save(tmp_path / "own", adapter)
    adapters.save(tmp_path / "shared", Adapter(method, once.arrays()))
    model_of_one = attached(tiny_llama, other := DVoRA(rank=3))
    adapters.save(tmp_path / "one", Adapter(other, model_of_one.arrays()))
    assert (tmp_path / "own" / adapters.CONFIG).exists()
    for folder, wanted in ((tmp_path / "own", model), (tmp_path / "shared", once), (tmp_path / "one", model_of_one)):
        again = load(tiny_llama, backend="reference")
        adapters.attach(again, adapters.load(folder))
        np.testing.assert_array_equal(again.logits(IDS), wanted.logits(IDS))
    assert len(safetensors.scan(tmp_path / "shared" / peft.TENSORS).names()) == 2 * len(SITES) + 2
    assert len(safetensors.scan(tmp_path / "one" / adapters.TENSORS).names()) == 3 * len(SITES) + 2
    assert {f.severity for f in lint(tmp_path / "one")} == {"note"}
    assert kept(adapters.load(tmp_path / "one")) < kept(adapters.load(tmp_path / "own"))


@pytest.mark.parametrize(
    ("fields", "tensors", "error", "message"),
    [
        ({"save_projection": False}, {}, CapabilityError, "drawn again by torch from projection_prng_key"),
        (
            {},
            {"base_model.vera_A": None},
            FormatError,
            "there is no vera_A, which the modules share",
        ),
        ({}, {"base_model.vera_A": (3, 32, 1)}, FormatError, r"share arrays of the shapes .*, but .*\(3, 32, 1\)"),
        ({}, {"base_model.vera_B": ()}, FormatError, r"share arrays of the shapes"),
        ({"r": 2}, {}, FormatError, r"rank=2.* share arrays of the shapes .*, but .*\(3, "),
        ({}, {"base_model.model.x.vera_A": (3, 32)}, FormatError, "one vera_A is expected for all modules"),
        ({"peft_type": "PVERA", "sample_at_inference": True}, {}, CapabilityError, "sample_at_inference is true"),
        ({"d_initial": None}, {}, FormatError, "VeRA: start must be a number, but None came"),
    ],
)
def test_what_is_not_shared_or_not_there_is_refused(tiny_llama, tmp_path, fields, tensors, error, message):
    """In one sentence; what only says how the arrays were drawn is kept."""
    model = attached(tiny_llama, VeRA(rank=3))
    peft.save(tmp_path, Adapter(VeRA(rank=3), model.arrays()))
    config = json.loads((tmp_path / peft.CONFIG).read_text()) | {"projection_prng_key": 5, "vera_dropout": 0.1}
    (tmp_path / peft.CONFIG).write_text(json.dumps(config))
    assert peft.load(tmp_path).config["projection_prng_key"] == 5
    (tmp_path / peft.CONFIG).write_text(json.dumps(config | fields))
    there = dict(safetensors.load(tmp_path / peft.TENSORS).tensors)
    there |= {n: np.ones(shape, np.float32) for n, shape in tensors.items() if shape is not None}
    safetensors.save(tmp_path / peft.TENSORS, {n: a for n, a in there.items() if tensors.get(n, ()) is not None})
    with pytest.raises(error, match=message):
        peft.load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "without", "error", "message"),
    [
        ({"save_projection": False}, "", CapabilityError, "drawn again by torch from projection_seed"),
        ({"weight_tying": 0.5}, "", CapabilityError, "TINYLORA with weight_tying 0.5, peft_version null is not read"),
        ({"u": 3}, "", CapabilityError, r"peft makes projections of the shape \(3, 2, 2\), not \(4, 2, 2\)"),
        (
            {},
            "base_model.tinylora_v.2",
            FormatError,
            r"tinylora_v.2, base_model.tinylora_v.3 are expected, but .*v.1, ",
        ),
    ],
)
def test_vectors_are_numbered_in_the_models_order(tiny_llama, tmp_path, fields, without, error, message):
    """Whatever the order of sites, and each module has its own."""
    method, numbers = TinyLoRA(rank=2, numbers=4), {"projection_seed": 42}
    arrays = attached(tiny_llama, method).arrays()
    peft.save(tmp_path, Adapter(method, {site: arrays[site] for site in reversed(SITES)}, numbers))
    tensors = dict(safetensors.load(tmp_path / peft.TENSORS).tensors)
    for number, site in enumerate(SITES):
        np.testing.assert_array_equal(tensors[f"base_model.tinylora_v.{number}"], arrays[site]["v"])
    safetensors.save(tmp_path / peft.TENSORS, {n: a for n, a in tensors.items() if n != without})
    config = json.loads((tmp_path / peft.CONFIG).read_text())
    (tmp_path / peft.CONFIG).write_text(json.dumps(config | fields))
    with pytest.raises(error, match=message):
        peft.load(tmp_path)


BY_KIND = ("layers.0.attn.q", "layers.1.attn.q", "layers.0.mlp.down", "layers.1.mlp.down")


@pytest.mark.parametrize(("stride", "trained"), [(1, 4 + 2 + 4), (2, 2 + 2 + 4)])
def test_matrices_of_a_kind_have_arrays_in_common(tiny_llama, tmp_path, stride, trained):
    """Lily's, each way: one array in the model and in peft's, which gets the gradient of all, also where it was read."""
    torch, theirs, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    method = Lily(rank=3, experts=4, stride=stride, scaling=2.0)
    model, random = load(tiny_llama), np.random.default_rng(1)
    model.attach(",".join(BY_KIND), method, random)
    shaken(model, random)
    assert len(model.trained) == trained
    adapter = Adapter(method, model.arrays())
    expected, (_, gradients) = model.logits(IDS).numpy(), model.loss(IDS)
    peft.save(tmp_path / "ours", adapter)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    other = theirs.PeftModel.from_pretrained(plain, tmp_path / "ours", is_trainable=True)
    bound = 2.0**-15 * np.abs(expected).max()
    np.testing.assert_allclose(other(torch.from_numpy(IDS)).logits.detach().numpy(), expected, rtol=0, atol=bound)
    found = dict(other.named_parameters())
    assert sum("lily_" in name for name in found) == trained
    scores = other(torch.from_numpy(IDS[:, :-1])).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(scores, torch.from_numpy(IDS[:, 1:]).flatten()).backward()
    for name, gradient in gradients.items():
        site, _, array = name.rpartition(".")
        part = {"a": "lily_A", "b": "lily_B", "router": "lily_router"}[array]
        grad = found[f"base_model.model.{peft.module_of(site, 'llama')}.{part}.default.weight"].grad.numpy()
        ours = gradient.numpy().reshape(grad.shape)
        np.testing.assert_allclose(ours, grad, rtol=0, atol=2.0**-14 * np.abs(grad).max())
    other.save_pretrained(tmp_path / "theirs")
    again, read = load(tiny_llama), peft.load(tmp_path / "theirs")
    adapters.attach(again, read)
    assert read.method == method
    assert set(again.trained) == set(model.trained)
    np.testing.assert_array_equal(again.logits(IDS), expected)


def test_what_peft_would_have_in_common_otherwise_is_ours_alone(tiny_llama, tmp_path):
    """Arrays of their own, layers with other matrices than others, a single B; and a batch with Lily is not cut."""
    method, model = Lily(rank=3), load(tiny_llama)
    model.attach(",".join(BY_KIND), method, np.random.default_rng(1))
    arrays = model.arrays()
    apart = arrays | {BY_KIND[1]: arrays[BY_KIND[1]] | {"b": np.ones((2, 3, 32))}}
    with pytest.raises(
        ShapeError, match=r"layers.0.attn.q and layers.1.attn.q have one b under Lily\(.*, but two came"
    ):
        load(tiny_llama).attach(",".join(BY_KIND), method, arrays=apart)
    alone = load(tiny_llama)
    alone.attach(BY_KIND[0], Lily(rank=3, experts=1), np.random.default_rng(1))
    for folder, adapter, said in (
        ("apart", Adapter(method, apart), "have one b under Lily"),
        ("uneven", Adapter(method, {s: arrays[s] for s in BY_KIND[:3]}), "at other matrices than others"),
        ("bert", Adapter(method, {s: arrays[s] for s in BY_KIND[2:]}, family="bert"), "names end alike"),
        ("single", Adapter(Lily(rank=3, experts=1), alone.arrays()), "peft refuses a single B"),
    ):
        with pytest.raises(CapabilityError, match=said):
            peft.save(tmp_path / folder, adapter)
        adapters.save(tmp_path / folder, adapter)
        assert (tmp_path / folder / adapters.CONFIG).exists()
    adapters.attach(again := load(tiny_llama), adapters.load(tmp_path / "uneven"))
    assert len(again.trained) == 3 + 2 + 3
    peft.save(tmp_path / "theirs", Adapter(method, arrays))
    tensors = dict(safetensors.load(tmp_path / "theirs" / peft.TENSORS).tensors)
    tensors["base_model.model.model.layers.1.self_attn.q_proj.lily_B.weight"] = np.ones((6, 32), np.float32)
    safetensors.save(tmp_path / "theirs" / peft.TENSORS, tensors)
    with pytest.raises(CapabilityError, match=r"layers\.1\.attn\.q have one b under Lily"):
        peft.load(tmp_path / "theirs")
    assert len(shards.each(Threads, 64, lambda *_: 0, np.zeros((8, 1025)), None, model.operations)) == 1
    assert len(shards.each(Threads, 64, lambda *_: 0, np.zeros((8, 1025)), None, {"lora.linear"})) == 4


class Threads:
    """A backend that cuts batches."""

    shards, together = 4, staticmethod(lambda tasks: [task() for task in tasks])
