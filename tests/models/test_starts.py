"""Starts from data in a model: they are peft's on the same texts, and what is kept of them is for the base as it was."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.convert.quantise import Settings
from refpeft.errors import AttributeValueError, CapabilityError
from refpeft.formats import adapters
from refpeft.formats import peft as files
from refpeft.formats.adapter import Adapter
from refpeft.methods import EVA, CorDA, LoftQ, LoRA, LoRAFA, LoRAGA, MiCA, OLoRA, PiSSA
from refpeft.models import load
from refpeft.models.starts import gradients, inputs
from refpeft.ops.lora_inputs import Inputs

SITES = "layers.*.attn.q,layers.*.attn.v,layers.*.mlp.down"
IDS = np.random.default_rng(0).integers(0, 97, (4, 24))


def attached(folder, method, batches=(IDS,)):
    """The model with the method at the sites, at its start."""
    model = load(folder)
    model.attach(SITES, method, np.random.default_rng(0), batches=batches)
    return model


def config(name, rank=4, **more):
    """peft's, at the same sites and scaled by 2."""
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "v_proj", "down_proj"]
    return peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=name, **more)


def module(model, site):
    """peft's layer at a site."""
    return model.get_submodule("base_model.model." + files.module_of(site, "llama"))


def factors(layer):
    """A, B and the base weight of peft's layer."""
    kept = (layer.lora_A["default"], layer.lora_B["default"], layer.base_layer)
    return tuple(part.weight.detach().numpy().astype(np.float64) for part in kept)


def near(ours, theirs, unit):
    """Equal in norm."""
    return np.linalg.norm(ours - theirs) <= unit * np.linalg.norm(theirs)


def signed(ours, theirs):
    """Rows of ours with the signs that theirs have."""
    return ours * np.sign(np.sum(ours * theirs, axis=1, keepdims=True))


def test_eva_is_pefts(saved, tmp_path):
    """The same ranks at every site, and the same directions up to signs, to what peft's random decomposition is good for.

    What peft saves of it, with other ranks at other sites, is read.
    """
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    folder, theirs = saved
    settings = config("eva", 6, eva_config=peft.EvaConfig(rho=2.0, tau=0.9999))
    theirs = peft.get_peft_model(theirs, settings, low_cpu_mem_usage=True)
    peft.initialize_lora_eva_weights(theirs, [{"input_ids": torch.from_numpy(IDS)}], show_progress_bar=False)
    model = attached(folder, EVA(rank=6, alpha=12, rho=2.0))
    ranks = {site: len(its["a"]) for site, its in model.arrays().items()}
    assert sum(ranks.values()) == 6 * 6
    assert len(set(ranks.values())) > 2
    for site, its in model.arrays().items():
        layer = module(theirs, site)
        a, b, _ = factors(layer)
        assert ranks[site] == layer.r["default"]
        assert model.sites[site].attributes == {"scaling": layer.scaling["default"]}
        assert near(signed(its["a"], a), a, 2.0**-10)
        assert not np.any(its["b"]) and not np.any(b)
        layer.lora_B["default"].weight.data.normal_()
    theirs.save_pretrained(tmp_path)
    found, again = files.load(tmp_path), load(folder)
    again.attach(found.pattern, found.method, arrays=found.arrays)
    with torch.no_grad():
        assert near(again.logits(IDS).numpy(), theirs(torch.from_numpy(IDS)).logits.numpy(), 2.0**-14)


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_is_pefts(saved, mode):
    """The product and the weight that is left, of one text, to what peft's inverse in float32 is good for."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    preprocess = pytest.importorskip("peft.tuners.lora.corda").preprocess_corda
    folder, theirs = saved
    settings = config("corda", corda_config=peft.tuners.lora.config.CordaConfig(corda_method=mode))
    preprocess(theirs, settings, lambda: theirs(torch.from_numpy(IDS[:1])))
    theirs = peft.get_peft_model(theirs, settings)
    for site, its in attached(folder, CorDA(rank=4, alpha=8, mode=mode), [IDS[:1]]).arrays().items():
        a, b, weight = factors(module(theirs, site))
        assert near(its["b"] @ its["a"], b @ a, 2.0**-8)
        assert near(its["weight"], weight, 2.0**-12)


def test_corda_weighs_texts_as_peft_does_where_asked(saved):
    """Of three texts, one of them of one token over and over: each divided by its largest input, or all alike as in the paper."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    preprocess = pytest.importorskip("peft.tuners.lora.corda").preprocess_corda
    folder, theirs = saved
    texts = [IDS[:1], IDS[1:2, :5], np.full((1, 24), 7)]
    settings = config("corda", corda_config=peft.tuners.lora.config.CordaConfig())
    preprocess(theirs, settings, lambda: [theirs(torch.from_numpy(ids)) for ids in texts])
    theirs = peft.get_peft_model(theirs, settings)
    products = {site: np.matmul(*factors(module(theirs, site))[1::-1]) for site in attached(folder, LoRA()).arrays()}

    def apart(variant):
        """The largest distance of the update, over its norm."""
        its = attached(folder, CorDA(rank=4, alpha=8, variant=variant), texts).arrays()
        return max(np.linalg.norm(its[s]["b"] @ its[s]["a"] - p) / np.linalg.norm(p) for s, p in products.items())

    assert apart("peft") < 2.0**-8 < 2.0**-4 < apart("paper")


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_lora_ga_is_pefts(saved):
    """Of the gradient over two batches: the factors up to signs, in peft's reading."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    lora = pytest.importorskip("peft.tuners.lora")
    folder, theirs = saved
    settings, ids = config("lora_ga", lora_ga_config=lora.LoraGAConfig()), torch.from_numpy(IDS)

    def step():
        for part in ids[:2], ids[2:]:
            theirs(input_ids=part, labels=part).loss.backward()

    lora.preprocess_loraga(theirs, settings, step)
    theirs = peft.get_peft_model(theirs, settings)
    model = attached(folder, LoRAGA(rank=4, alpha=8, variant="peft"), [IDS[:2], IDS[2:]])
    for site, its in model.arrays().items():
        a, b, _ = factors(module(theirs, site))
        assert near(signed(its["a"], a), a, 2.0**-10)
        assert near(signed(its["b"].T, b.T), b.T, 2.0**-10)


@pytest.mark.parametrize(
    "method",
    [
        PiSSA(rank=4, alpha=8),
        OLoRA(rank=4, alpha=8),
        EVA(rank=4, alpha=10),
        CorDA(rank=4, alpha=8),
        LoRAGA(rank=4, alpha=8),
        MiCA(rank=4, alpha=8),
        LoRAFA(rank=4, alpha=8),
    ],
    ids=repr,
)
def test_what_is_kept_is_for_the_base_as_it_was(saved, tmp_path, method):
    """The model begins where it was; moved, it has the logits that peft has with LoRA on the original, and that come back."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    folder, theirs = saved
    model, random, base = attached(folder, method), np.random.default_rng(1), load(folder).logits(IDS).numpy()
    assert near(model.logits(IDS).numpy(), base, 2.0**-14)
    for layer in model.sites.values():
        for name in layer.trained:
            array = model.host(layer.arrays[name])
            layer.arrays[name] = model.asarray(array + random.normal(size=array.shape) * 0.1)
    logits = model.logits(IDS).numpy()
    assert not near(logits, base, 2.0**-4)
    files.save(tmp_path, files.Adapter(*model.kept(method)), base=str(folder))
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path)(torch.from_numpy(IDS)).logits.numpy()
    assert near(theirs, logits, 2.0**-14)
    found, again = files.load(tmp_path), load(folder)
    assert type(found.method) is LoRA
    again.attach(found.pattern, found.method, arrays=found.arrays)
    assert near(again.logits(IDS).numpy(), logits, 2.0**-14)


@pytest.mark.filterwarnings("ignore:PiSSA changes the base")
def test_what_peft_converts_to_lora_is_read(saved, tmp_path):
    """PiSSA as peft trained it: with the conversion it has peft's logits; without, it is refused."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    folder, theirs = saved
    model = peft.get_peft_model(theirs, config("pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "first")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape) if "lora_" in name else 0
        logits = model(torch.from_numpy(IDS)).logits.numpy()
    model.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "first"))
    with pytest.raises(CapabilityError, match='init_lora_weights is "pissa", so that the adapter is for a weight that'):
        files.load(tmp_path / "plain")
    found, again = files.load(tmp_path / "lora"), load(folder)
    again.attach(found.pattern, found.method, arrays=found.arrays)
    assert near(again.logits(IDS).numpy(), logits, 2.0**-13)


def test_loftqs_base_has_no_place_in_pefts_files(saved_folder, tmp_path):
    """It is no LoRA over the weight as it was; refpeft's own form has it whole, to the bit. Nearer to the model than NF4."""
    method, base = LoftQ(rank=8, alpha=16, iterations=2), load(saved_folder).logits(IDS).numpy()
    model = attached(saved_folder, method)
    with pytest.raises(CapabilityError, match=r"peft's files have no place for LoftQ\("):
        files.save(tmp_path / "peft", files.Adapter(*model.kept(method)))
    adapters.save(tmp_path / "own", Adapter(*model.kept(method)))
    found, again = adapters.load(tmp_path / "own"), load(saved_folder)
    again.attach(found.pattern, found.method, arrays=found.arrays)
    np.testing.assert_array_equal(again.logits(IDS), model.logits(IDS))
    for layer in again.sites.values():
        if "b" in layer.arrays:
            layer.arrays["b"] = 0 * layer.arrays["b"]
    off, alone = (np.linalg.norm(m.logits(IDS).numpy() - base) for m in (model, again))
    assert 0 < off < alone


@pytest.mark.parametrize("double", [False, True])
def test_over_a_base_in_4_bits_a_start_is_computed_from_what_it_is_decoded_to(saved_folder, double):
    """EVA's is kept as LoRA; a weight that CorDA or LoRA-GA changed is quantised again, and kept whole where that can be."""
    model = load(saved_folder, quantise=Settings(kind="nf4", double=double))
    model.attach(SITES, EVA(rank=4), batches=[IDS])
    assert type(model.kept(EVA(rank=4))[0]) is LoRA
    for method in (CorDA(rank=4), LoRAGA(rank=4)):
        if double:
            with pytest.raises(CapabilityError, match="not doubly quantised"):
                model.attach(SITES, method, batches=[IDS])
        else:
            model.attach(SITES, method, batches=[IDS])
            kept, arrays = model.kept(method)
            again = load(saved_folder, quantise=Settings(kind="nf4"))
            again.attach(SITES, kept, arrays=arrays)
            assert kept == method
            np.testing.assert_array_equal(again.logits(IDS), model.logits(IDS))


def test_the_gradient_to_a_matrix_in_4_bits_is_that_to_what_it_is_decoded_to(saved_folder):
    """Of a model whose every matrix is the decoded one."""
    four, decoded = load(saved_folder, quantise=Settings(kind="nf4", double=True)), load(saved_folder)
    for site, place in four.places.items():
        if place.kind == "linear":
            weight = decoded.asarray(four.weight(site))
            decoded.sites[site].arrays["weight"] = weight
            decoded.places[site] = place._replace(weight=weight)
    sites = ["layers.0.attn.q", "layers.1.mlp.down"]
    got, wanted = (gradients(model, sites, [{"ids": IDS}, {"ids": IDS[:2]}]) for model in (four, decoded))
    assert all(near(got[site], wanted[site], 2.0**-16) for site in sites)


def test_a_start_from_data_needs_data(saved_folder):
    """One sentence, and nothing is attached; a site in place of which another method stood is seen plain."""
    model = load(saved_folder)
    for method, needs in ((EVA(), "inputs"), (CorDA(), "inputs"), (LoRAGA(), "gradient")):
        with pytest.raises(
            AttributeValueError, match=rf"starts from the layers' {needs}: batches of token ids are needed"
        ):
            model.attach(SITES, method)
    assert not model.trained
    wanted = attached(saved_folder, CorDA(rank=4)).arrays()
    model.attach(SITES, LoftQ(rank=4))
    model.attach(SITES, CorDA(rank=4), batches=[IDS])
    for site, its in wanted.items():
        for name, array in its.items():
            np.testing.assert_array_equal(model.arrays()[site][name], array)


def test_sites_that_are_given_one_array_share_one_account(saved_folder):
    """q and v of a layer, over two batches of other lengths; what they are given is counted once."""
    model = load(saved_folder)
    found = inputs(
        model, ["layers.0.attn.q", "layers.0.attn.v", "layers.1.attn.q"], [{"ids": IDS}, {"ids": IDS[:, :5]}]
    )
    assert isinstance(found["layers.0.attn.q"], Inputs)
    assert found["layers.0.attn.q"] is found["layers.0.attn.v"]
    assert found["layers.0.attn.q"] is not found["layers.1.attn.q"]
    assert {its.tokens for its in found.values()} == {4 * 29}
    assert model.watch is None
