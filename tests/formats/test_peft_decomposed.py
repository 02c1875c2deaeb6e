"""Adapters in peft's files without what is of the weight's singular value decomposition: made again here, or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from small_models import shaken

from refpeft.cli import main
from refpeft.convert.quantise import Settings
from refpeft.errors import CapabilityError, FormatError, ShapeError
from refpeft.formats import adapters, peft, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.formats.lint import lint
from refpeft.methods import OSF, PSOFT, AdaMSS, FRoD
from refpeft.models import load

IDS = np.random.default_rng(0).integers(0, 256, (2, 9))
SITES = ("layers.0.attn.q", "layers.1.attn.v", "layers.1.mlp.down")


def drawn(folder, method, **options) -> Adapter:
    model, random = load(folder, **options), np.random.default_rng(1)
    model.attach(",".join(SITES), method, random)
    return Adapter(method, shaken(model, random).arrays())


def logits(folder, adapter, **options) -> np.ndarray:
    model = load(folder, **options)
    adapters.attach(model, adapter)
    return model.logits(IDS).numpy()


@pytest.mark.parametrize(
    ("fields", "method", "trained"),
    [
        ({"effective_rank": 5, "rank_pattern": {"v_proj": 0.25}}, OSF(preserved=5), (27, 12, 27)),
        ({"rank_pattern": {r"1.*v_proj$": 3}}, OSF(), (16, 13, 16)),
    ],
)
def test_modules_with_ranks_of_their_own_are_exchanged(tiny_llama, tmp_path, fields, method, trained):
    """peft's number, share or pattern of them, each way; a merge has the frozen part from the weight, too."""
    torch, theirs, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    names = [peft.module_of(site, "llama") for site in SITES]
    torch.manual_seed(0)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = theirs.get_peft_model(plain, theirs.OSFConfig(target_modules=names, **fields))
    for name, parameter in model.named_parameters():
        if "osf_" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    expected = model(torch.from_numpy(IDS)).logits.detach().numpy()
    model.save_pretrained(tmp_path / "theirs")
    adapter = peft.load(tmp_path / "theirs")
    assert adapter.method == method
    assert {site: its["s"].shape[0] for site, its in adapter.arrays.items()} == dict(zip(SITES, trained))
    bound = 2.0**-15 * np.abs(expected).max()
    np.testing.assert_allclose(logits(tiny_llama, adapter), expected, rtol=0, atol=bound)
    adapters.save(tmp_path / "ours", adapter)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    again = theirs.PeftModel.from_pretrained(plain, tmp_path / "ours")(torch.from_numpy(IDS)).logits.detach().numpy()
    np.testing.assert_allclose(again, expected, rtol=0, atol=bound)
    assert np.abs(expected - load(tiny_llama).logits(IDS).numpy()).max() > 64 * bound
    merge = ["merge", tiny_llama, "--adapter", tmp_path / "ours", "--out", tmp_path / "merged"]
    assert CliRunner().invoke(main, [*map(str, merge)]).exit_code == 0
    np.testing.assert_allclose(load(tmp_path / "merged").logits(IDS).numpy(), expected, rtol=0, atol=2 * bound)


@pytest.mark.parametrize(
    ("fields", "tensors", "error", "message"),
    [
        (
            {"effective_rank": 7},
            {},
            FormatError,
            "trains 16 of 32 triplets, but effective_rank and rank_pattern freeze 7",
        ),
        ({"effective_rank": "half"}, {}, FormatError, "OSF: preserved must be a number, but 'half' came"),
        ({"rank_pattern": {"q_(": 2}}, {}, FormatError, "rank_pattern must give modules positive numbers"),
        ({}, {"S_low": (15,)}, FormatError, r"q_proj has U_low \(32, 16\), S_low \(15,\) and V_low"),
        ({}, {"V_low": None}, FormatError, "layers.0.attn.q lacks v"),
        ({"target_svd_config": {"q": 3}}, {}, CapabilityError, "target_svd_config is .*, which is not understood"),
    ],
)
def test_what_contradicts_the_tensors_is_refused(tiny_llama, tmp_path, fields, tensors, error, message):
    """In one sentence."""
    peft.save(tmp_path, drawn(tiny_llama, OSF()))
    config = json.loads((tmp_path / peft.CONFIG).read_text()) | fields
    (tmp_path / peft.CONFIG).write_text(json.dumps(config))
    there, at = dict(safetensors.load(tmp_path / peft.TENSORS).tensors), "layers.0.self_attn.q_proj.osf_svd_params."
    for name, shape in tensors.items():
        key = next(key for key in there if key.endswith(at + name))
        there.pop(key) if shape is None else there.update({key: np.ones(shape, np.float32)})
    safetensors.save(tmp_path / peft.TENSORS, there)
    with pytest.raises(error, match=message):
        peft.load(tmp_path)


def test_of_what_peft_does_not_make_again_ours_is_the_only_form(tiny_llama, tmp_path):
    """A frozen part that was quantised again, nothing frozen, a basis of FRoD's, clusters, and PSOFT's A and B, whose signs are a
    library's own.
    """
    for method, options, said in (
        (OSF(), {"quantise": Settings(kind="nf4")}, "peft takes the frozen part from the base weight and keeps none"),
        (OSF(preserved=0.0), {}, "peft freezes one singular triplet at least"),
        (FRoD(rate=0.05), {}, "peft computes U over a basis of its own when it loads, whatever basis the file has"),
        (AdaMSS(rank=3, groups=2), {}, "of which peft keeps no clusters of rows, which scikit-learn finds again"),
        (PSOFT(rank=3), {}, "of which peft keeps neither A nor B, which are of the weight's singular vectors"),
    ):
        folder, adapter = tmp_path / said[-9:], drawn(tiny_llama, method, **options)
        with pytest.raises(CapabilityError, match=said):
            peft.save(folder, adapter)
        adapters.save(folder, adapter)
        again = adapters.load(folder)
        assert {f.severity for f in lint(folder)} == {"note"}
        np.testing.assert_array_equal(logits(tiny_llama, again, **options), logits(tiny_llama, adapter, **options))
    theirs, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    theirs.get_peft_model(plain, theirs.PsoftConfig(r=4, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "theirs"
    )
    with pytest.raises(CapabilityError, match=r"of PSOFT peft keeps neither A nor B, .* so that it is not read"):
        peft.load(tmp_path / "theirs")


def test_a_frozen_part_is_made_for_a_weight_that_has_it(tiny_llama):
    """The trained triplets alone are kept; more of them than the weight has are refused."""
    adapter = drawn(tiny_llama, OSF())
    assert all(set(its) == {"u", "s", "v"} for its in adapter.arrays.values())
    wide = {"u": np.ones((32, 33)), "s": np.ones(33), "v": np.ones((33, 32))}
    with pytest.raises(ShapeError, match=r"osf: a weight \(32, 32\) has 32 triplets, but 33 came"):
        load(tiny_llama).attach(SITES[0], OSF(), arrays={SITES[0]: wide})


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_basis_and_places_of_each_kind_are_read(tiny_llama, tmp_path):
    """What peft trained with FRoD: U follows from the file's basis and the weight, whose signs then do not matter."""
    torch, theirs, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    torch.manual_seed(0)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = theirs.FrodConfig(
        target_modules=["q_proj", "v_proj"], sparse_rate=0.05, init_weights=False, progressbar=False
    )
    model = theirs.get_peft_model(plain, config)
    expected = model(torch.from_numpy(IDS)).logits.detach().numpy()
    model.save_pretrained(tmp_path)
    adapter = peft.load(tmp_path)
    assert adapter.method == FRoD(rate=0.05)
    bound = 2.0**-14 * np.abs(expected).max()
    np.testing.assert_allclose(logits(tiny_llama, adapter), expected, rtol=0, atol=bound)
    assert np.abs(expected - load(tiny_llama).logits(IDS).numpy()).max() > 64 * bound
    merge = ["merge", tiny_llama, "--adapter", tmp_path, "--out", tmp_path / "merged"]
    assert CliRunner().invoke(main, [*map(str, merge)]).exit_code == 0
    np.testing.assert_allclose(load(tmp_path / "merged").logits(IDS).numpy(), expected, rtol=0, atol=2 * bound)
    tensors, basis = dict(safetensors.load(tmp_path / peft.TENSORS).tensors), "base_model.frod_V.self_attn_q_proj"
    for change, said in (
        ({basis: None}, "there is no base_model.frod_V.self_attn_q_proj, which matrices of a kind have in common"),
        (
            {basis: np.ones((31, 31), np.float32)},
            r"of self_attn_q_proj do not fit: \(31, 31\), \(2, 51\) and \[32, 32\]",
        ),
        (
            {"base_model.frod_V.mlp_up_proj": np.ones((2, 2))},
            "frod_V.mlp_up_proj' belongs to no matrix that has an adapter",
        ),
        ({"base_model.frod_s_indices.self_attn_v_proj": np.full((2, 51), 32)}, "of self_attn_v_proj do not fit"),
    ):
        safetensors.save(tmp_path / peft.TENSORS, {n: a for n, a in (tensors | change).items() if a is not None})
        with pytest.raises(FormatError, match=said):
            peft.load(tmp_path)
