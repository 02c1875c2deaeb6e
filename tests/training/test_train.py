"""``refpeft train`` and ``refpeft evaluate``: a killed run goes on to the same bits, and what was learned is peft's to load."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from refpeft.cli import main
from refpeft.formats import adapters, safetensors
from refpeft.training import curve, text

TEXT = "In the beginning there was a matrix, and the matrix was without rank. " * 12


@pytest.fixture(scope="module")
def model(tiny_llama, tmp_path_factory):
    """A random Llama with a text beside it."""
    folder = tmp_path_factory.mktemp("model") / "llama"
    shutil.copytree(tiny_llama, folder)
    (folder / "text.txt").write_text(TEXT)
    return folder


def refpeft(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def training(model, out, **changes):
    """The command line of a small run."""
    options = {"data": model / "text.txt", "out": out, "steps": 8, "batch": 2, "sequence": 24, "lr": 0.02} | changes
    return ["train", model, *(part for name, value in options.items() for part in (f"--{name}", value))]


def test_a_shadow_is_trained_with_its_own_dropout(model, tmp_path):
    """peft's by default, which its file says too; another rate is another adapter."""
    found = {}
    for rate in (None, 0.2, 0.0):
        more = [] if rate is None else ["--option", f"dropout={rate}"]
        given = training(model, tmp_path / str(rate), method="shadow", backend="torch", steps=2)
        assert refpeft(*given, *more).exit_code == 0
        adapter = tmp_path / str(rate) / "adapter"
        found[rate] = adapters.load(adapter).arrays["layers.0.shadow.inject"]["up"]
        assert json.loads((adapter / "adapter_config.json").read_text())["shadow_dropout"] == (
            0.2 if rate is None else rate
        )
    np.testing.assert_array_equal(found[None], found[0.2])
    assert np.abs(found[0.0] - found[0.2]).max() > 0


@pytest.mark.parametrize(("method", "backend"), [("lora", "cpu"), ("dora", "cpu"), ("hra", "torch")])
def test_training_lowers_the_loss_and_peft_loads_what_was_learned(model, tmp_path, method, backend):
    """On the text and for peft alike: the loss that refpeft evaluates with the adapter is the one that peft's model has."""
    torch, peft, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    more = {"method": method, "backend": backend, "steps": 24, "targets": "all-linear"}
    trained = refpeft(*training(model, tmp_path / "run", **more), "--json")
    assert trained.exit_code == 0, trained.output
    (row,) = json.loads(trained.stdout)
    assert row["last"] < row["first"]
    arguments = ("evaluate", model, "--data", model / "text.txt", "--sequence", 24, "--backend", backend, "--json")
    before, after = (
        json.loads(refpeft(*arguments, *extra).stdout)[0]["loss"] for extra in ((), ("--adapter", row["adapter"]))
    )
    assert after < before - 0.1
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(model), row["adapter"])
    from refpeft.models.tokens import tokenizer

    ids = torch.from_numpy(text.rows(model / "text.txt", tokenizer(model), 25))
    with torch.no_grad():
        assert abs(theirs(input_ids=ids, labels=ids).loss.item() - after) < 2.0**-16


@pytest.mark.parametrize(
    ("method", "more", "kept"),
    [
        ("prompt", {"tokens": 3, "start-text": "In the beginning"}, "adapter_config.json"),
        ("ptuning", {"tokens": 3}, "adapter_config.json"),
        ("prefix", {"tokens": 3, "start-text": "In the beginning"}, "adapter_config.json"),
        ("cartridge", {"tokens": 3, "start-text": "In the beginning", "lr": 0.1}, "adapter_config.json"),
        ("ia3", {"targets": "k,v"}, "adapter_config.json"),
        ("eva", {"rank": 3, "start-batches": 2}, "adapter_config.json"),
        ("corda", {"rank": 3, "start-batches": 9}, "adapter_config.json"),
        ("lora_ga", {"rank": 3}, "adapter_config.json"),
        ("loftq", {"rank": 3}, "refpeft_adapter.json"),
        ("houlsby", {"reduction": 4}, "adapter.safetensors"),
        ("vera", {"rank": 4, "lr": 0.1}, "adapter_config.json"),
        ("trainable_tokens", {"option": f"tokens={','.join(map(str, range(40)))}"}, "adapter_config.json"),
    ],
)
def test_methods_of_every_kind_are_trained_and_read_back(model, tmp_path, method, more, kept):
    """Evaluated with what was kept, encoders gone, the text is likelier than for the base by as much as training says."""
    pytest.importorskip("torch")
    options = {"method": method, "backend": "torch", "steps": 12, "schedule": "constant", **more}
    trained = refpeft(*training(model, tmp_path / "run", **options), "--json")
    assert trained.exit_code == 0, trained.output
    (row,) = json.loads(trained.stdout)
    assert row["last"] < row["first"]
    assert (tmp_path / "run" / "adapter" / kept).exists()
    arguments = ("evaluate", model, "--data", model / "text.txt", "--sequence", 24, "--backend", "torch", "--json")
    before, after = (
        json.loads(refpeft(*arguments, *extra).stdout)[0]["loss"] for extra in ((), ("--adapter", row["adapter"]))
    )
    assert after < before
    again = refpeft(*training(model, tmp_path / "run", **options))
    assert again.exit_code == 2
    assert "holds this run, complete" in again.stderr


def lines(path) -> int:
    """Of a file, if it is there."""
    return path.read_text().count("\n") if path.exists() else 0


def test_a_killed_run_goes_on_to_the_same_bits(model, tmp_path):
    """Killed three times at random instants: adapter and losses are those of a run that was left alone."""
    whole = refpeft(*training(model, tmp_path / "whole", steps=30))
    assert whole.exit_code == 0, whole.output
    command = [sys.executable, "-m", "refpeft", *map(str, training(model, tmp_path / "killed", steps=30))]
    metrics, status = tmp_path / "killed" / "metrics.jsonl", []
    for _ in range(3):
        enough = lines(metrics) + random.randint(2, 5)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            while lines(metrics) < enough and run.poll() is None:
                time.sleep(0.001)
            run.kill()
        status.append(run.returncode)
    assert status == [-signal.SIGKILL] * 3
    last = refpeft(*training(model, tmp_path / "killed", steps=30))
    assert last.exit_code == 0, last.output
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        ours, theirs = (tmp_path / run / "adapter" / name for run in ("whole", "killed"))
        assert ours.read_bytes() == theirs.read_bytes()
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "killed")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 30


def test_qlora_is_trained_with_paged_state_and_its_options_may_lie_in_a_file(model, tmp_path):
    """Over NF4, doubly quantised: equal losses with one page of the state or all, from a file or the command line."""
    (tmp_path / "run.toml").write_text(
        'method = "qlora"\nrank = 256\noptimizer = "paged-adamw"\nstate-budget = "1MiB"\n'
    )
    alone = {"method": "lora", "rank": 256, "quantize": "nf4", "targets": "all-linear"}
    runs = {
        "paged": training(model, tmp_path / "paged", config=tmp_path / "run.toml", targets="all-linear"),
        "whole": [*training(model, tmp_path / "whole", **alone), "--double-quant"],
        "lion": [*training(model, tmp_path / "lion", optimizer="lion", **alone), "--double-quant"],
    }
    losses = {}
    for name, arguments in runs.items():
        result = refpeft(*arguments)
        assert result.exit_code == 0, result.output
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    trained = adapters.load(tmp_path / "paged" / "adapter").arrays.values()
    assert 8 * sum(array.size for arrays in trained for array in arrays.values()) > 2**20, (
        "more than the budget's one page"
    )
    assert losses["paged"] == losses["whole"] != losses["lion"]
    assert losses["whole"][-1] < losses["whole"][0]
    arguments = ("evaluate", model, "--data", model / "text.txt", "--adapter", tmp_path / "whole" / "adapter", "--json")
    four, plain = (
        json.loads(refpeft(*arguments, "--sequence", 24, *more).stdout)[0]["loss"]
        for more in (("--quantize", "nf4", "--double-quant"), ())
    )
    assert four != plain


@pytest.mark.parametrize(
    ("method", "backend", "options"),
    [
        *((name, "cpu", {"rank": 3}) for name in ("eva", "corda", "lora_ga", "loftq")),
        ("vblora", "reference", {"rank": 2, "bank": 6, "length": 8}),
    ],
)
def test_a_start_of_its_own_is_the_same_when_a_run_goes_on(model, tmp_path, method, backend, options):
    """Interrupted behind any step and started anew, a run ends with the adapter, to the bit, of one that was left alone: where
    it starts from data, and where matrices share a bank.
    """
    from pathlib import Path

    from refpeft.methods import methods
    from refpeft.models import load
    from refpeft.training import loop

    class Interrupted(Exception):
        pass

    def run(out: Path, stops: int) -> dict[str, bytes]:
        def advance(step, loss):
            if step == stops:
                raise Interrupted

        ids = np.random.default_rng(0).integers(0, 256, (9, 12))
        settings = loop.Settings(steps=4, batch=2, lr=0.02, start_batches=2)
        loop.train(
            load(model, backend=backend), methods()[method](**options), "*.q,*.down", ids, settings, out, {}, advance
        )
        return {path.name: path.read_bytes() for path in (out / "adapter").iterdir()}

    whole = run(tmp_path / "whole", 0)
    for stops in (1, 3):
        with pytest.raises(Interrupted):
            run(tmp_path / "stopped", stops)
    assert run(tmp_path / "stopped", 0) == whole


def test_lora_plus_has_a_rate_of_its_own_for_b_and_is_kept_as_lora(model, tmp_path):
    """Adam's first step is as long as the rate, for every element that has a gradient."""
    options = {"method": "lora_plus", "rank": 2, "steps": 1, "schedule": "constant", "lr": 0.01}
    result = refpeft(*training(model, tmp_path / "run", **options))
    assert result.exit_code == 0, result.output
    found = adapters.load(tmp_path / "run" / "adapter")
    assert type(found.method).__name__ == "LoRA"
    for arrays in found.arrays.values():
        np.testing.assert_allclose(np.abs(arrays["b"]), 16 * 0.01, rtol=2.0**-8)


def test_rows_of_a_step_do_not_depend_on_the_steps_before():
    """A pass takes every row once, in an order of its own."""
    ids = np.arange(10)[:, None]
    passes = [np.concatenate([text.batch(ids, 5, 3, step) for step in steps]) for steps in ((0, 1), (2, 3))]
    assert all(sorted(p[:, 0]) == list(range(10)) for p in passes)
    assert not np.array_equal(*passes)
    np.testing.assert_array_equal(text.batch(ids, 5, 3, 2), passes[1][:5])


def begun(model, out, monkeypatch, **changes):
    """A run that is interrupted when all its steps are done and nothing is kept yet."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "save", interrupted)
        assert refpeft(*training(model, out, **changes)).exit_code == 130


def test_a_run_does_not_go_on_over_another_text_or_model(model, tmp_path, monkeypatch):
    """Of the same names: what changed is named. Changed back, it goes on, a half line and temporary files cleared away."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    shutil.copytree(model, mine)
    begun(mine, run, monkeypatch)
    for name, changed, said in (
        ("text.txt", TEXT.replace("matrix", "vector").encode(), "sha256 of the text's tokens is"),
        ("config.json", (mine / "config.json").read_bytes().replace(b"10000.0", b"5000.0"), "sha256 of the model is"),
        ("model.safetensors", (mine / "model.safetensors").read_bytes()[:-1] + b"\1", "sha256 of the model is"),
    ):
        before = (mine / name).read_bytes()
        (mine / name).write_bytes(changed)
        result = refpeft(*training(mine, run))
        assert (result.exit_code, "holds another run: " + said in result.stderr) == (2, True), result.stderr
        (mine / name).write_bytes(before)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    (run / "adapter").mkdir()
    for folder in (run, run / "adapter", run / "state"):
        (folder / ".0123456789abcdef.tmp").write_text("left by a kill")
    assert refpeft(*training(mine, run)).exit_code == 0
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(range(1, 9))
    assert not list(run.rglob("*.tmp"))


def test_what_a_run_has_noted_is_not_made_up(model, tmp_path, monkeypatch):
    """Losses of complete steps that are lost or damaged, and a record that cannot be, end in a sentence; all is left as it is."""
    run = tmp_path / "run"
    begun(model, run, monkeypatch, steps=2)
    metrics, record = run / "metrics.jsonl", run / "state" / "record.json"
    for file, damaged, said in (
        (metrics, b"", "must have a line for each of the 2 steps that are complete, but line 1 is none"),
        (metrics, metrics.read_bytes()[:-20], "but line 2 is none"),
        (metrics, b"\xff\n\xff\n", "but line 1 is none"),
        (record, record.read_bytes().replace(b'"steps": 2', b'"steps": -1'), "steps in record.json must be 0 or more"),
    ):
        before = file.read_bytes()
        file.write_bytes(damaged)
        result = refpeft(*training(model, run, steps=2))
        assert (result.exit_code, said in result.stderr) == (2, True), result.output
        assert file.read_bytes() == damaged
        file.write_bytes(before)


def test_a_run_is_complete_when_its_picture_is_drawn(model, tmp_path, monkeypatch):
    """Interrupted between the last step and the adapter, the same command draws; what cannot be written is refused before all."""
    pytest.importorskip("matplotlib")
    begun(model, tmp_path / "run", monkeypatch, steps=1, plot=tmp_path / "loss.png")
    (tmp_path / "loss.png").unlink()
    assert refpeft(*training(model, tmp_path / "run", steps=1, plot=tmp_path / "loss.png")).exit_code == 0
    assert (tmp_path / "loss.png").exists()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "none" / "x.png")
    for plot in ("folder.png", "dangling.png"):
        result = refpeft(*training(model, tmp_path / "new", plot=tmp_path / plot))
        assert (result.exit_code, "cannot be written because" in result.stderr) == (2, True)
        assert not (tmp_path / "new").exists()


def spoil(file, name):
    """Make an element of a tensor one that is no number."""
    tensors = {n: np.array(a) for n, a in safetensors.load(file).tensors.items()}
    tensors[name].flat[0] = np.nan
    safetensors.save(file, tensors)


TOKENS = {"method": "trainable_tokens", "backend": "torch"}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_no_number_does_not_pass_for_an_adapter(model, tmp_path):
    """A run whose loss left the numbers says so, and an adapter with such an element is not put on a model."""
    result = refpeft(*training(model, tmp_path / "far", lr=1e38))
    assert result.exit_code == 2
    assert re.search(
        r"the loss was nan in step \d, so that \S+ holds no adapter of use", " ".join(result.output.split())
    )
    assert refpeft(*training(model, tmp_path / "run", steps=1)).exit_code == 0
    folder = tmp_path / "run" / "adapter"
    spoil(folder / "adapter_model.safetensors", "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight")
    result = refpeft("evaluate", model, "--data", model / "text.txt", "--sequence", 24, "--adapter", folder)
    assert result.exit_code == 2
    assert "the adapter's b of layers.0.attn.q has an element that is not finite" in " ".join(result.output.split())


def test_wrong_runs_are_refused_in_a_sentence(model, tmp_path):
    """Exit status 2, and nothing is begun."""
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"texts": 1}\n')
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "bad.toml").write_text("ranks = 8")
    (tmp_path / "nul.toml").write_text('targets = "a\\u0000b"')
    (tmp_path / "flag.toml").write_text("checkpointing = 3")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("")
    shutil.copytree(model, tmp_path / "nan")
    spoil(tmp_path / "nan" / "model.safetensors", "model.layers.0.self_attn.q_proj.weight")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".0123456789abcdef.tmp").write_text("what a kill left behind is no obstacle")
    assert refpeft(*training(model, run)).exit_code == 0
    for arguments, said in (
        (training(model, run), "holds this run, complete; name a new folder to train again"),
        (training(model, run, lr=0.1), "holds another run: lr is 0.02 there, but 0.1 is asked for"),
        (training(model, tmp_path / "full"), "holds something that is not a run"),
        (
            training(model, tmp_path / "new", method="xlora", backend="reference"),
            "X-LoRA mixes adapters that were trained before, but none came",
        ),
        (training(model, tmp_path / "new", method="hira"), "backend 'cpu' does not implement hira.linear"),
        (
            training(model, tmp_path / "new", **{"start-text": "a"}),
            "LoRA starts from no text: prompts and prefixes do.",
        ),
        (
            training(model, tmp_path / "new", method="shadow", backend="torch", **{"start-text": "a"}),
            "Shadow starts from no text: prompts and prefixes do.",
        ),
        (
            training(model, tmp_path / "new", method="multitask_prompt", backend="reference"),
            "MultitaskPromptTuning needs the task of each text, which a file of text does not say.",
        ),
        (
            training(model, tmp_path / "new", method="cartridge", decay=0.1),
            "has frozen tokens, which would decay: decay must be 0.",
        ),
        (training(model, tmp_path / "new", method="none"), "there is no method 'none'"),
        (
            training(model, tmp_path / "new", method="prompt", **{"start-text": ""}),
            "--start-text needs a text, but an empty",
        ),
        (training(model, tmp_path / "new", lr=-1), "lr must be 0 or more, and finite, but -1.0 came"),
        (training(model, tmp_path / "new", lr="nan"), "lr must be 0 or more, and finite, but nan came"),
        (training(model, tmp_path / "new", decay=-1), "decay must be 0 or more, and finite, but -1.0 came"),
        (training(model, tmp_path / "new", plot=tmp_path / "none" / "x.png"), "none does not exist"),
        (
            training(model, tmp_path / "new", **TOKENS),
            "trainable_tokens needs tokens, as --option tokens=5,17, but none",
        ),
        (
            [*training(model, tmp_path / "new", **TOKENS), "--option", "tokens=1,256"],
            "TrainableTokens: tokens must be below the table's 256 rows, but (1, 256) came",
        ),
        (
            [*training(model, tmp_path / "new"), "--option", "ranks=3"],
            "lora has no option 'ranks'; its options are rank",
        ),
        ([*training(model, tmp_path / "new"), "--option", "rank=x"], "lora: rank must be an integer, but 'x' came"),
        ([*training(model, tmp_path / "new"), *2 * ["--option", "rank=3"]], "--option rank is given twice"),
        (training(tmp_path / "nan", tmp_path / "new"), "q_proj.weight has an element that is not finite in float32"),
        (["generate", tmp_path / "nan", "--prompt", "a"], "q_proj.weight has an element that is not finite in float32"),
        (training(model, tmp_path / "new", targets="query"), "has no matrix 'query'"),
        (training(model, tmp_path / "new", **{"start-batches": 0}), "start_batches must be at least 1, but 0 came"),
        (
            training(model, tmp_path / "new", method="lora_ga", rank=17),
            "rank must be at most half of 32, the smaller side",
        ),
        (training(model, tmp_path / "new", warmup=9), "warmup must be from 0 to the 8 steps, but 9 came"),
        (training(model, tmp_path / "new", dropout=1), "dropout must be from 0 and below 1, but 1.0 came"),
        (
            training(model, tmp_path / "new", dropout=0.1, method="ia3"),
            "IA3 has no way that dropout lies on: ia3.linear takes none.",
        ),
        (
            training(model, tmp_path / "new", dropout=0.1, method="shadow", backend="torch"),
            "Shadow says itself what is dropped, by its option dropout, but a dropout of 0.1 came beside it",
        ),
        (training(model, tmp_path / "new", schedule="steep"), "schedule must be one of constant, linear, cosine"),
        (training(model, tmp_path / "new", data=tmp_path / "bad.jsonl"), "line 2 must be a JSON object with a text"),
        (
            training(model, tmp_path / "new", data=tmp_path / "short.txt"),
            "has 5 tokens, expected at least the 25 of a row",
        ),
        (training(model, tmp_path / "new", data=tmp_path / "none.txt"), "none.txt: No such file"),
        (training(model, tmp_path / "new", method="hra"), "backend 'cpu' does not implement hra.linear"),
        (training(model, tmp_path / "new", backend="nowhere"), "there is no backend 'nowhere'"),
        (training(model, tmp_path / "new", optimizer="sgdw"), "there is no optimizer 'sgdw', expected one of sgd"),
        (training(model, tmp_path / "new", optimizer="paged-adam", decay=0.1), "paged-adam has no decay of weights"),
        (
            [*training(model, tmp_path / "new", optimizer="paged-adamw"), "--state-budget", "1000"],
            "the budget must hold at least one page, but it is 1000 bytes",
        ),
        (training(model, tmp_path / "new", quantize="nf3"), "There is no 4-bit format 'nf3'"),
        (training(model, tmp_path / "new", quantize=""), "There is no 4-bit format ''"),
        (training(model, tmp_path / "new", plot=""), "its name must end in .png, but '' came"),
        (
            training(model, tmp_path / "new", **{"start-text": "\udcff"}),
            "--start-text must be UTF-8, but '\\udcff' came",
        ),
        (["generate", model, "--prompt", "a\udcff"], "--prompt must be UTF-8, but '\\udcff' came"),
        (
            training(model, tmp_path / "new", config=tmp_path / "nul.toml"),
            "targets must be one value, but 'a\\x00b' came",
        ),
        (
            training(model, tmp_path / "new", config=tmp_path / "flag.toml"),
            "checkpointing must be true or false, but 3",
        ),
        ([*training(model, tmp_path / "new"), "--double-quant"], "--double-quant needs --quantize nf4 or fp4"),
        (training(model, tmp_path / "new", config=tmp_path / "bad.jsonl"), "must be a TOML file of options"),
        (training(model, tmp_path / "new", config=tmp_path / "bad.toml"), "bad.toml has 'ranks', expected one of"),
        (training(tmp_path / "full", tmp_path / "new"), "has no tokenizer.json"),
        (["evaluate", model, "--data", model / "text.txt", "--rows", "0"], "must be at least 1"),
        (["evaluate", model, "--data", model / "text.txt", "--adapter", tmp_path], "has no adapter_config.json"),
    ):
        result = refpeft(*arguments)
        assert result.exit_code == 2, result.output
        assert said in " ".join(result.output.split()), result.output
        assert not (tmp_path / "new").exists()


def test_a_gguf_files_tokenizer_is_transformers(smollm2, read_once):
    """Text with digits, accents, several scripts and special tokens; and back."""
    transformers = pytest.importorskip("transformers")
    from refpeft.models.tokens import tokenizer

    theirs = transformers.AutoTokenizer.from_pretrained(os.path.dirname(smollm2), gguf_file=os.path.basename(smollm2))
    ours = tokenizer(smollm2)
    for sample in ("In 1815, M. Charles-François-Bienvenu Myriel", "漢字 и кириллица\n\n\tdef f(x): return x**2", TEXT):
        found = ours.encode(sample, add_special_tokens=False)
        assert found.ids == theirs(sample, add_special_tokens=False).input_ids
        assert ours.decode(found.ids) == sample


def test_losses_are_drawn_if_matplotlib_is_there(model, tmp_path, monkeypatch):
    """As a PNG beside the run; without matplotlib nothing is begun."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "loss.png"
    drawn = refpeft(*training(model, tmp_path / "run", backend="cpu", plot=picture))
    assert drawn.exit_code == 0, drawn.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused = refpeft(*training(model, tmp_path / "other", plot=picture))
    assert refused.exit_code == 2
    assert "Drawing needs matplotlib" in refused.stderr
    other = refpeft(*training(model, tmp_path / "other", plot="a.svg"))
    assert (other.exit_code, other.stderr.count("\n")) == (2, 1)
    assert "its name must end in .png, but 'a.svg' came" in other.stderr
    assert not (tmp_path / "other").exists()


def test_the_smoothed_loss_is_the_mean_of_the_steps_around():
    """A constant stays as it is; one high loss is shared by those that see it, fewer of them towards the ends."""
    assert list(curve.smoothed([3.0] * 9, 5)) == [3.0] * 9
    assert list(curve.smoothed([0, 0, 0, 0, 5, 0, 0], 5)) == [0, 0, 1, 1, 1, 1.25, 5 / 3]
