"""``refpeft lint``: each finding provoked in a folder that peft wrote, and a clean folder clean."""

from __future__ import annotations

import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

from refpeft.cli import main
from refpeft.formats import adapters, peft, peft_fields, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.formats.lint import lint
from refpeft.formats.lint_facts import STARTS, STILL
from refpeft.methods import DVoRA, RandLoRA
from refpeft.models import load

pytestmark = pytest.mark.filterwarnings("ignore:Specified to not", "ignore:save_precomputed_indices")
LAYER = "base_model.model.model.layers.0.self_attn"
A, B = f"{LAYER}.q_proj.lora_A.weight", f"{LAYER}.q_proj.lora_B.weight"
VALUE_B = f"{LAYER}.v_proj.lora_B.weight"


def written(tiny_llama, folder, config, drawn=("lora_B",)):
    """An adapter that peft saves, some of its tensors as after training."""
    transformers, theirs = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = theirs.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in drawn):
                parameter.normal_()
    model.save_pretrained(folder, save_embedding_layers=False)
    fields = json.loads((folder / peft.CONFIG).read_text()) | {"base_model_name_or_path": "someone/llama"}
    (folder / peft.CONFIG).write_text(json.dumps(fields))
    return folder


@pytest.fixture(scope="module")
def clean(tiny_llama, tmp_path_factory):
    """LoRA on q and v."""
    theirs = pytest.importorskip("peft")
    config = theirs.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return written(tiny_llama, tmp_path_factory.mktemp("clean"), config)


def changed(folder, to, config=(), tensors=(), without=()):
    """A copy with other fields and tensors."""
    shutil.copytree(folder, to)
    fields = json.loads((to / peft.CONFIG).read_text()) | dict(config)
    fields = {name: value for name, value in fields.items() if name not in without}
    (to / peft.CONFIG).write_text(json.dumps(fields))
    arrays = dict(safetensors.load(to / peft.TENSORS).tensors) | dict(tensors)
    safetensors.save(to / peft.TENSORS, {n: a for n, a in arrays.items() if a is not None and n not in without})
    return to


def run(*arguments):
    return CliRunner().invoke(main, ["lint", *map(str, arguments)])


def test_a_clean_adapter_is_clean(clean, tiny_llama):
    """Nothing is found in it, alone or with its model but for the model's other name; exit status 0."""
    assert lint(clean) == []
    alone, fitted = run(clean, "--json"), run(clean, "--model", tiny_llama, "--json")
    assert (alone.exit_code, json.loads(alone.stdout)) == (0, [])
    assert fitted.exit_code == 0
    assert [(f["severity"], f["where"]) for f in json.loads(fitted.stdout)] == [("note", "base_model_name_or_path")]


ONES = np.ones((2, 32), np.float32)
PROVOKED = [
    ({}, {"base_model.model.score.weight": ONES}, "error", "score.weight", "belongs to nothing that LORA has"),
    ({}, {A.removeprefix("base_model."): ONES}, "error", "model.model.layers.0", "belongs to nothing"),
    ({}, {"base_model.model.lm_head.weight": ONES}, "warning", "lm_head", "a whole table of the base was saved"),
    ({"target_modules": ["q_proj"]}, {}, "error", "layers.0.self_attn.v_proj", "the configuration gives it no adapter"),
    ({"exclude_modules": r".*\.1\..*q_proj"}, {}, "error", "layers.1.self_attn.q_proj", "gives it no adapter"),
    ({"layers_to_transform": [1]}, {}, "error", "layers.0.self_attn.q_proj", "gives it no adapter"),
    ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, {}, "warning", "target_modules", "names up_proj, which has no"),
    ({"modules_to_save": ["lm_head"]}, {}, "error", "modules_to_save", "names lm_head, of which the file has nothing"),
    ({}, {B: None}, "error", "layers.0.self_attn.q_proj", "has lora_A.weight but no lora_B.weight"),
    ({"use_dora": True}, {}, "error", "layers.0.self_attn.q_proj", "but no lora_magnitude_vector"),
    ({}, {A: ONES[:1]}, "error", "layers.0.self_attn.q_proj", r"\(1, 32\) and lora_B.weight \(32, 2\) have no inner"),
    ({"r": 4}, {}, "error", "layers.0.self_attn.q_proj", "has 2 rows, but r and rank_pattern say 4"),
    ({"rank_pattern": {"v_proj": 1}}, {}, "error", "self_attn.v_proj", "has 2 rows, but r and rank_pattern say 1"),
    ({}, {A: ONES[:0]}, "error", "lora_A.weight", "nothing is in it, as where shards were not gathered"),
    ({}, {A.replace(".weight", ".default.weight"): ONES}, "error", "q_proj.lora_A", "has the place of another tensor"),
    ({}, {A.replace(".weight", ".own.weight"): ONES, A: None}, "warning", "q_proj", "holds an adapter's name, own"),
    ({"lora_alpha": None}, {}, "warning", "lora_alpha", "is missing: peft takes 8"),
    ({"use_rslora": True}, {}, "note", "use_rslora", "scales by 4.243; who does not know the field scales by 3"),
    ({"alpha_pattern": {"v_proj": 3}}, {}, "note", "alpha_pattern", "who reads r and lora_alpha alone"),
    ({"alpha_pattern": {"v_proj": 3}}, {}, "warning", "LORA", "refpeft does not read it: .* and others by 3"),
    *(({"init_lora_weights": start}, {}, STARTS[start][0], "init_lora_weights", "changed the base") for start in STARTS),
    ({}, {A: ONES * np.nan}, "error", "lora_A.weight", "64 of 64 values are not finite"),
    ({}, {A: ONES * 1e6}, "warning", "lora_A.weight", r"reaches 1e\+06, which float16 \(up to 65504\) has not"),
    ({}, {VALUE_B: np.zeros((16, 2), np.float32)}, "note", "layers.0.self_attn.v_proj", "is at its start"),
    ({}, {A: ONES.astype(np.float16)}, "note", "float16", "1 of 8 tensors: peft computes with them in float32"),
    ({}, {A: ONES.astype(ml_dtypes.bfloat16)}, "note", "bfloat16", "1 of 8 tensors"),
    ({}, {A: ONES.astype(np.float64)}, "note", "float64", "not every library reads it"),
    ({"a_field_of_the_future": 7}, {}, "warning", "a_field_of_the_future", "is 7, which refpeft does not know"),
    ({"peft_version": "0.99.1"}, {}, "note", "peft_version", "0.99.1 is newer than 0.21"),
    ({"peft_type": "GPT"}, {}, "warning", "GPT", "refpeft does not read it: peft_type is 'GPT'"),
    ({"use_dora": True, "use_rslora": True}, {}, "warning", "LORA", "does not read it: LORA with use_dora true"),
    ({"base_model_name_or_path": "/home/me/llama"}, {}, "note", "base_model", "a path of the machine that wrote it"),
    ({"base_model_name_or_path": None}, {}, "note", "base_model", "nothing says which model"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "tensors", "severity", "where", "what"), PROVOKED)
def test_what_would_be_lost_is_found(clean, tmp_path, config, tensors, severity, where, what):
    """Of the fields and tensors of LoRA, each by where it is; exit status 1 but for notes."""

    folder = changed(clean, tmp_path / "a", config, tensors)
    found = lint(folder)
    hits = [f for f in found if f.severity == severity and where in f.where and re.search(what, f.what)]
    assert hits, found
    assert run(folder).exit_code == int(any(f.severity != "note" for f in found))


def test_an_adapter_is_held_to_a_model(clean, tiny_llama, tmp_path):
    """Modules that it lacks or has in another size, and modules that peft would start anew."""
    far = {name.replace("layers.0", "layers.9"): ONES if "A" in name else np.ones((32, 2)) for name in (A, B)}
    wide = {A: np.ones((2, 33), np.float32)}
    gone = dict.fromkeys((A, B))
    for at, (tensors, severity, what) in enumerate(
        [
            (far, "error", ("model.layers.9.self_attn.q_proj", "is not in the model")),
            (wide, "error", ("model.layers.0.self_attn.q_proj", "adapts a weight of (32, 33), but the model's is (32, 32)")),
            (gone, "warning", ("model.layers.0.self_attn.q_proj",
                               "is among target_modules, but has no tensors: peft starts it anew")),
        ]
    ):  # fmt: skip
        result = run(changed(clean, tmp_path / str(at), {}, tensors), "--model", tiny_llama, "--json")
        assert result.exit_code == 1
        assert (severity, *what) in [(f["severity"], f["where"], f["what"]) for f in json.loads(result.stdout)]


def test_peft_itself_bears_the_findings_out(clean, tiny_llama, tmp_path):
    """It passes over what is unaccounted for without a warning, starts a module anew that lost its B, and finds nothing
    under another name than the one in the tensors' names.
    """
    torch, transformers, theirs = (pytest.importorskip(n) for n in ("torch", "transformers", "peft"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.arange(9)[None]

    def logits(folder=None, **keywords):
        model = theirs.PeftModel.from_pretrained(base, folder, **keywords) if folder else base
        with torch.no_grad():
            found = model(ids).logits.numpy()
        return found, model.unload() if folder else base

    plain, whole = logits()[0], logits(clean)[0]
    extra = changed(clean, tmp_path / "extra", {}, {"base_model.model.score.weight": ONES})
    np.testing.assert_array_equal(logits(extra)[0], whole)
    tensors = safetensors.load(clean / peft.TENSORS).tensors
    inserted = {n.replace(".weight", ".own.weight"): a for n, a in tensors.items()} | dict.fromkeys(tensors)
    own = changed(clean, tmp_path / "own", {}, inserted)
    np.testing.assert_array_equal(logits(own, adapter_name="own")[0], whole)
    with pytest.warns(UserWarning, match="Found missing adapter keys"):
        np.testing.assert_array_equal(logits(own)[0], plain)
    half = changed(clean, tmp_path / "half", {}, dict.fromkeys(n for n in tensors if "lora_B" in n))
    with pytest.warns(UserWarning, match="Found missing adapter keys"):
        np.testing.assert_array_equal(logits(half)[0], plain)


KINDS = {
    "VeraConfig": {"r": 4}, "PveraConfig": {"r": 4}, "RandLoraConfig": {"r": 4}, "FourierFTConfig": {"n_frequency": 7},
    "WaveFTConfig": {"n_frequency": 7}, "ShiraConfig": {"r": 1}, "UniLoraConfig": {"r": 2}, "SupertuningConfig": {},
    "TinyLoraConfig": {"r": 2}, "PsoftConfig": {"r": 4}, "OSFConfig": {}, "LoHaConfig": {"r": 2}, "HiraConfig": {"r": 2},
    "LoKrConfig": {"r": 2}, "DeloraConfig": {"r": 2}, "GraloraConfig": {"r": 8}, "HRAConfig": {"r": 2},
    "VBLoRAConfig": {"vector_length": 8, "num_vectors": 8, "r": 2, "save_only_topk_weights": True},
}  # fmt: skip
AGAIN = {
    "FourierFTConfig": "FOURIERFT", "WaveFTConfig": "WAVEFT", "UniLoraConfig": "save_indices", "PsoftConfig": "PSOFT",
    "OSFConfig": "OSF",
}  # fmt: skip
"""What peft draws or decomposes again as it stands, and where the finding is."""


@pytest.mark.parametrize("name", KINDS)
def test_what_a_seed_draws_again_and_what_does_nothing_is_found(tiny_llama, tmp_path, name):
    """Of fresh adapters of peft's other types: each that is at its start, each that leaves something out, and no error."""
    theirs = pytest.importorskip("peft")
    config = getattr(theirs, name)(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **KINDS[name])
    folder = written(tiny_llama, tmp_path / "fresh", config, drawn=())
    found = lint(folder)
    assert [f for f in found if f.severity == "error"] == []
    assert [f.where for f in found if "not in the file" in f.what] == AGAIN.get(name, "").split()
    arrays = dict(safetensors.load(folder / peft.TENSORS).tensors)
    still = any(n.endswith(tuple(f".{array}" for array in STILL)) and len(set(a.flat)) == 1 for n, a in arrays.items())
    assert any("the adapter does nothing" in f.what for f in found) == still
    assert any("cannot be trained further" in f.what for f in found) == (name == "VBLoRAConfig")


@pytest.mark.parametrize(
    ("name", "flag", "marker"),
    [
        ("VeraConfig", "save_projection", "vera_A"),
        ("RandLoraConfig", "save_projection", "randlora_A"),
        ("SupertuningConfig", "save_precomputed_indices", "supertuning_indices"),
        ("TinyLoraConfig", "save_projection", "tinylora_P"),
    ],
)
def test_a_projection_that_was_not_saved_is_found(tiny_llama, tmp_path, name, flag, marker):
    """As a warning where the field says so, as an error where the field promises it and peft cannot load it."""
    theirs = pytest.importorskip("peft")
    config = getattr(theirs, name)(target_modules=["q_proj"], task_type="CAUSAL_LM", **KINDS[name], **{flag: False})
    folder = written(tiny_llama, tmp_path / "a", config, drawn=())
    assert not any(marker in tensor for tensor in safetensors.scan(folder / peft.TENSORS))
    assert [f.severity for f in lint(folder) if f.where == flag] == ["warning"]
    promised = changed(folder, tmp_path / "b", {flag: True})
    assert [f.severity for f in lint(promised) if f.where == flag] == ["warning" if "Tiny" in name else "error"]


def test_refpefts_own_form_is_held_to_its_method_and_a_model(tiny_llama, tmp_path):
    """Frozen arrays are in it, so that nothing is drawn again; a missing one, NaN and another width are found."""
    for method in (DVoRA(rank=4), RandLoRA(rank=4)):
        folder, model = tmp_path / type(method).__name__, load(tiny_llama, backend="reference")
        model.attach("layers.*.attn.q", method, np.random.default_rng(0))
        adapters.save(folder, Adapter(method, model.arrays()), base="someone/llama")
        assert [(f.severity, f.where) for f in lint(folder)] == [("note", adapters.CONFIG)]
        assert run(folder, "--model", tiny_llama).exit_code == 0
    (folder / peft.CONFIG).write_text("{}")
    tensors = dict(safetensors.load(folder / adapters.TENSORS).tensors)
    name = next(n for n in tensors if not n.startswith(adapters.ALL))
    safetensors.save(folder / adapters.TENSORS, {n: a for n, a in tensors.items() if n != name})
    site, _, array = name.rpartition(".")
    found = lint(folder)
    assert (site, f"lacks {array}, which randlora needs") in [(f.where, f.what) for f in found if f.severity == "error"]
    assert peft.CONFIG in [f.where for f in found if f.severity == "warning"]
    shapes = {f"model.layers.{i}.self_attn.q_proj.weight": (31, 32) for i in range(2)}
    safetensors.save(folder / adapters.TENSORS, tensors)
    assert {f.where for f in lint(folder, "x", shapes) if f.severity == "error"} == {
        "layers.0.attn.q",
        "layers.1.attn.q",
    }


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": "two"}, "r must be a positive number, but 'two' came."),
        ({"rank_pattern": {"q_(": 2}}, "rank_pattern must give modules positive numbers"),
        ({"target_modules": 7}, "target_modules must be names of modules, but 7 came."),
        ({"target_modules": "q_("}, "target_modules must be a regular expression, but 'q_(' came"),
    ],
)
def test_where_nothing_can_be_said_one_sentence_says_why(clean, tmp_path, config, said):
    """Exit status 2 and nothing on standard output: also without the folder, a file of it, or a whole one, or a model."""
    folder = changed(clean, tmp_path / "a", config)
    (tmp_path / "empty").mkdir()
    cut = shutil.copytree(clean, tmp_path / "cut")
    (cut / peft.TENSORS).write_bytes(b"abc")
    for arguments, reason in (
        ([folder], said),
        ([tmp_path / "nothing"], "there is no such folder, expected an adapter's."),
        ([tmp_path / "empty"], "has no adapter_config.json, expected an adapter of peft."),
        ([cut], str(cut / peft.TENSORS)),
        ([clean, "--model", tmp_path / "nothing"], "nothing"),
    ):
        result = run(*arguments, "--json")
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert reason in result.stderr
        assert result.stderr.count("\n") == 1


def test_starts_that_are_found_are_those_that_the_reader_refuses():
    """One that changed the base weight is known by both or by neither."""
    assert STARTS.keys() == peft_fields.CHANGING.keys()
