"""``refpeft extract``: what any method or any training changes in matrices is LoRA of some rank, which every library reads."""

from __future__ import annotations

import json
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from small_models import shaken

from refpeft.cli import main
from refpeft.convert.extract import Changed, extract, factors, of_adapter, of_model
from refpeft.convert.source import open_model
from refpeft.errors import AttributeValueError, CapabilityError, DomainError, FormatError
from refpeft.formats import adapters, peft, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.methods import LoRA, methods, needs_of
from refpeft.models import load

IDS = np.random.default_rng(0).integers(0, 256, (2, 9))
SITES = ("layers.0.attn.q", "layers.1.mlp.down")
MERGED = [
    name
    for name, cls in methods().items()
    if cls.operation.endswith(".linear") and not cls.not_mergeable and not needs_of(cls()) and cls.axes == 2
]
FITTING = {"boft": {"factors": 1}, "c3a": {"block": 16}, "oft": {"block": 4}}


def run(*arguments):
    return CliRunner().invoke(main, ["extract", *map(str, arguments)])


def trained(folder, name, **options) -> Adapter:
    """An adapter off its start."""
    model, random = load(folder), np.random.default_rng(1)
    method = methods()[name](**options)
    model.attach(",".join(SITES), method, random)
    return Adapter(*shaken(model, random, 0.1).kept(method))


def logits(folder, adapter=None) -> np.ndarray:
    model = load(folder, dtype="float64", backend="reference")
    if adapter is not None:
        adapters.attach(model, adapter)
    return model.logits(IDS)


def test_no_product_of_a_rank_is_nearer():
    """What is off is what the theorem says, and neither random factors nor steps away from these are nearer."""
    random = np.random.default_rng(0)
    change = random.normal(size=(9, 7))
    for rank in (1, 3, 7, 12):
        a, b, off = factors(change, rank)
        assert (a.shape, b.shape) == ((min(rank, 7), 7), (9, min(rank, 7)))
        assert abs(np.linalg.norm(change - b @ a) - off) < 2.0**-45
        for _ in range(50):
            step = [1e-3 * random.normal(size=m.shape) for m in (a, b)]
            assert np.linalg.norm(change - (b + step[1]) @ (a + step[0])) > off
    known = np.linalg.norm(change) / 3
    a, b, off = factors(change, known=known)
    assert off <= known < factors(change, len(a) - 1)[2]


@pytest.mark.parametrize("name", MERGED)
def test_what_any_method_changes_is_lora_of_some_rank(tiny_llama, name):
    """Logits with LoRA in the place of the method are its own, to the rounding of float32; a method of low rank keeps it."""
    adapter = trained(tiny_llama, name, **FITTING.get(name, {}))
    made = of_adapter(open_model(tiny_llama), adapter, matrices_only=True)
    expected = logits(tiny_llama, adapter)
    bound = 2.0**-16 * np.abs(expected).max()
    np.testing.assert_allclose(logits(tiny_llama, made.adapter), expected, rtol=0, atol=bound)
    assert np.abs(expected - logits(tiny_llama)).max() > 64 * bound
    assert set(made.adapter.arrays) == set(made.lost) == set(SITES)
    if isinstance(adapter.method, LoRA):
        assert [len(its["a"]) for its in made.adapter.arrays.values()] == [adapter.method.rank] * 2


def in_peft(folder, adapter):
    """Logits of transformers' model with an adapter that peft reads."""
    torch, theirs, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return theirs.PeftModel.from_pretrained(plain, adapter)(torch.from_numpy(IDS)).logits.detach().numpy()


@pytest.mark.parametrize(
    ("name", "options", "rank"), [("psoft", {"rank": 3}, 3), ("adamss", {"rank": 4, "groups": 2}, 4), ("frod", {}, 32)]
)
def test_peft_loads_what_its_own_form_of_a_method_does_not_say(tiny_llama, tmp_path, name, options, rank):
    """PSOFT of a rank is LoRA of that rank, AdaMSS of at most its own, FRoD of any; equal logits in peft."""
    adapter = trained(tiny_llama, name, **options)
    adapters.save(tmp_path / "ours", adapter)
    given = ["--adapter", tmp_path / "ours", "--out", tmp_path / "lora", "--json"]
    result = run(tiny_llama, *given)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["matrices"], row["number"]) for row in rows] == [
        (s.replace("0", "*").replace("1", "*"), 1) for s in SITES
    ]
    assert max(row["highest_rank"] for row in rows) <= rank
    assert all(0 <= row["lost"] < 2.0**-14 for row in rows)
    expected = logits(tiny_llama, adapter)
    bound = 2.0**-15 * np.abs(expected).max()
    np.testing.assert_allclose(in_peft(tiny_llama, tmp_path / "lora"), expected, rtol=0, atol=bound)
    assert np.abs(expected - logits(tiny_llama)).max() > 64 * bound


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", ["psoft", "adamss", "frod"])
def test_what_peft_trained_comes_from_the_model_that_it_merged(tiny_llama, tmp_path, monkeypatch, name):
    """Its files do not say what these methods compute; the model that peft merges does, and its own conversion of PSOFT."""
    torch, theirs, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    rows_in_turn = types.SimpleNamespace(
        KMeans=lambda n_clusters, **_: types.SimpleNamespace(fit_predict=lambda rows: np.arange(len(rows)) % n_clusters)
    )
    monkeypatch.setitem(sys.modules, "sklearn.cluster", rows_in_turn)
    monkeypatch.setitem(sys.modules, "sklearn", types.SimpleNamespace(cluster=rows_in_turn))
    modules = [peft.module_of(site, "llama") for site in SITES]
    torch.manual_seed(0)
    config = {
        "psoft": lambda: theirs.PsoftConfig(target_modules=modules, r=4, init_weights=False),
        "adamss": lambda: theirs.AdamssConfig(target_modules=modules, r=6, num_subspaces=2, init_weights=None),
        "frod": lambda: theirs.FrodConfig(
            target_modules=modules, sparse_rate=0.05, init_weights=False, progressbar=False
        ),
    }[name]()
    model = theirs.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    for key, parameter in model.named_parameters():
        if "adamss_B" in key:
            parameter.data += 0.1 * torch.randn_like(parameter)
    expected = model(torch.from_numpy(IDS)).logits.detach().numpy()
    bound = 2.0**-14 * np.abs(expected).max()
    if name == "psoft":
        theirs.save_as_lora(tmp_path / "converted", model, rank=4)
        np.testing.assert_allclose(logits(tiny_llama, peft.load(tmp_path / "converted")), expected, rtol=0, atol=bound)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    result = run(tiny_llama, "--tuned", tmp_path / "merged", "--out", tmp_path / "lora")
    assert result.exit_code == 0, result.output
    adapter = adapters.load(tmp_path / "lora")
    assert set(adapter.arrays) == set(SITES)
    np.testing.assert_allclose(logits(tiny_llama, adapter), expected, rtol=0, atol=bound)
    assert np.abs(expected - logits(tiny_llama)).max() > 32 * bound
    assert adapter.method.rank == {"psoft": 4, "adamss": 2, "frod": 32}[name]


def changed(folder, out, dtype=np.float32, **tensors) -> None:
    """A copy of a model with some tensors changed, in a dtype."""
    there = dict(safetensors.load(folder / "model.safetensors").tensors)
    for name, change in tensors.items():
        there[name] = change(np.array(there[name]))
    out.mkdir()
    safetensors.save(out / "model.safetensors", {n: np.array(a).astype(dtype) for n, a in there.items()})
    (out / "config.json").write_text((folder / "config.json").read_text())


QUERY, NORM = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"


def test_a_lower_rank_loses_what_it_says(tiny_llama, tmp_path):
    """Of a change with known singular values, 3, 2 and 1: at rank 1 the root of 5 / 14 of its norm, at rank 3 nothing."""
    random = np.random.default_rng(0)
    (left, _), (right, _) = (np.linalg.qr(random.normal(size=(32, 3))) for _ in range(2))
    changed(tiny_llama, tmp_path / "tuned", **{QUERY: lambda w: w + (left * [3, 2, 1]) @ right.T})
    for rank, lost in ((1, np.sqrt(5 / 14)), (2, np.sqrt(1 / 14)), (3, 0.0)):
        out = tmp_path / f"rank{rank}"
        result = run(tiny_llama, "--tuned", tmp_path / "tuned", "--rank", rank, "--out", out, "--json")
        [row] = json.loads(result.stdout)
        assert (row["matrices"], row["highest_rank"], row["parameters"]) == ("layers.*.attn.q", rank, rank * 64)
        assert abs(row["lost"] - lost) < 2.0**-18
        assert json.loads((out / "adapter_config.json").read_text())["r"] == rank
    assert [
        row["highest_rank"]
        for row in json.loads(
            run(tiny_llama, "--tuned", tmp_path / "tuned", "--out", tmp_path / "all", "--json").stdout
        )
    ] == [3]


def test_a_rounding_is_no_change(tiny_llama, tmp_path):
    """A model in bfloat16 differs from its float32 by roundings alone; beside them a change of rank 1 is of rank 1."""
    changed(tiny_llama, tmp_path / "rounded", ml_dtypes.bfloat16)
    result = run(tiny_llama, "--tuned", tmp_path / "rounded", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "No matrix of a block changed by more than the rounding of its elements" in result.stderr
    changed(tiny_llama, tmp_path / "tuned", ml_dtypes.bfloat16, **{QUERY: lambda w: w + np.outer(w[:, 0], w[0])})
    assert run(tiny_llama, "--tuned", tmp_path / "tuned", "--out", tmp_path / "out").exit_code == 0
    adapter = adapters.load(tmp_path / "out")
    assert (set(adapter.arrays), adapter.method.rank) == ({"layers.1.attn.q"}, 1)


def test_what_lora_has_no_place_for_is_refused_or_left_out(tiny_llama, tmp_path):
    """A norm that was trained too; nothing is written before it is said."""
    changed(tiny_llama, tmp_path / "tuned", **{QUERY: lambda w: w * 2, NORM: lambda w: w * 2})
    given = [tiny_llama, "--tuned", tmp_path / "tuned", "--out", tmp_path / "out"]
    refused = run(*given)
    assert refused.exit_code == 2
    assert "but the tuned model also changes 'model.norm.weight', which --matrices-only leaves out." in refused.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tuned"]
    assert run(*given, "--matrices-only").exit_code == 0
    assert set(adapters.load(tmp_path / "out").arrays) == {"layers.1.attn.q"}
    again = run(*given, "--matrices-only")
    assert again.exit_code == 2
    assert "out exists already, expected the name of a new folder." in again.stderr


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({QUERY: lambda w: w[:16]}, f"{QUERY} has shape (32, 32) in the model, but (16, 32) in the tuned one."),
        ({QUERY: lambda w: w * np.nan}, "The change of layers.1.attn.q has an element that is not finite."),
        ({}, "No matrix of a block changed by more than the rounding of its elements"),
    ],
)
def test_another_model_is_refused(tiny_llama, tmp_path, tensors, message):
    """In one sentence, with nothing written."""
    changed(tiny_llama, tmp_path / "tuned", **tensors)
    result = run(tiny_llama, "--tuned", tmp_path / "tuned", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tuned"]


def test_wrong_uses_are_said(tiny_llama, tmp_path):
    """Neither or both of what changes the model, a rank below 1, a method that has no merge, no folder to write in."""
    adapters.save(tmp_path / "ours", trained(tiny_llama, "psoft", rank=3))
    ours, out = ["--adapter", tmp_path / "ours"], ["--out", tmp_path / "out"]
    for given, message in (
        ([tiny_llama, *out], "expected either --adapter or --tuned, got neither."),
        ([tiny_llama, *ours, "--tuned", tiny_llama, *out], "expected either --adapter or --tuned, got both."),
        ([tiny_llama, *ours, *out, "--rank", 0], "LoRA: rank must be at least 1, but 0 came."),
        ([tiny_llama, *ours, "--out", tmp_path / "no" / "out"], "does not exist."),
    ):
        result = run(*given)
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "out").exists()
    routed = Adapter(methods()["lily"](), {SITES[0]: {}})
    with pytest.raises(CapabilityError, match="Lily cannot be merged"):
        of_adapter(open_model(tiny_llama), routed)
    for given in ({"rank": 0}, {"known": -1.0}, {"known": float("nan")}):
        with pytest.raises(AttributeValueError, match="expected a rank of at least 1 and a norm of at least 0"):
            factors(np.ones((2, 2)), **given)
    safetensors.save(tmp_path / "other.safetensors", {"w": np.ones((2, 2), np.float32)})
    with pytest.raises(FormatError, match="have no tensor in common"):
        of_model(open_model(tiny_llama), open_model(tmp_path / "other.safetensors"))
    with pytest.raises(DomainError, match="there is nothing to extract"):
        extract([Changed(SITES[0], np.ones((3, 3)), np.ones((3, 3)), 2.0**-24)], "llama")
