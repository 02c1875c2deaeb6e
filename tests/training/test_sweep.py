"""``refpeft sweep``: what is missing is done, once, by processes or a cluster, and the rows are those of a sweep left alone."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from refpeft import intervals
from refpeft.cli import main
from refpeft.errors import CapabilityError, FormatError
from refpeft.formats import adapters
from refpeft.methods import LoRA
from refpeft.models import load
from refpeft.models.tokens import tokenizer
from refpeft.training import executors, text
from refpeft.training.evaluation import mean_loss

TEXT = "In the beginning there was a matrix, and the matrix was without rank. "


@pytest.fixture(scope="module")
def model(tiny_llama, tmp_path_factory):
    """A random Llama with a text of several documents beside it."""
    folder = tmp_path_factory.mktemp("model") / "llama"
    shutil.copytree(tiny_llama, folder)
    documents = [json.dumps({"text": f"{i}. {TEXT}"}) for i in range(20)]
    (folder / "text.jsonl").write_text("\n".join(documents))
    return folder


def sweeping(model, out, **changes):
    """The command line of a small sweep."""
    options = {
        "model": model,
        "data": model / "text.jsonl",
        "out": out,
        "method": "lora,ia3",
        "rank": "1,2",
        "seeds": 2,
    }
    options |= {"steps": 6, "batch": 2, "sequence": 24, "lr": 0.02, "backend": "reference"} | changes
    return ["sweep", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def refpeft(*arguments):
    return CliRunner().invoke(main, [*arguments, "--json"])


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A sweep that was left alone: its folder, and what was printed."""
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("sweep") / "whole"
    result = refpeft(*sweeping(model, out))
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def test_every_method_is_trained_at_every_rank_with_every_seed(model, whole):
    """A row for each run, whose held-out loss is that of its adapter; a method without a rank has one for each seed."""
    out, printed = whole
    found = json.loads((out / "sweep.json").read_text())
    grid = [("lora", rank, seed) for rank in (1, 2) for seed in (0, 1)] + [("ia3", None, seed) for seed in (0, 1)]
    assert [(row["method"], row["rank"], row["seed"]) for row in found["runs"]] == grid
    widths = {"q": 32, "v": 16}
    lora = {rank: 2 * sum(LoRA(rank=rank).count(o=o, i=32) for o in widths.values()) for rank in (1, 2)}
    assert [row["trained"] for row in found["runs"]] == [lora[1], lora[1], lora[2], lora[2], *(2 * [2 * 48])]
    base = found["base"]["loss"]
    assert all(len(row["losses"]) == 6 and row["loss"] < base for row in found["runs"])
    assert len({row["loss"] for row in found["runs"]}) > 4
    held = text.parted(model / "text.jsonl", tokenizer(model), 25, 0.1)[1]
    decoder = load(model, backend="reference")
    assert mean_loss(decoder, held, 2) == base
    adapter = adapters.load(out / "runs" / "lora-rank2-seed1" / "adapter")
    decoder.attach(adapter.pattern, adapter.method, arrays=adapter.arrays)
    assert mean_loss(decoder, held, 2) == found["runs"][3]["loss"]

    assert printed == [found["base"], *found["points"]]
    assert printed[0]["method"] == "untrained"
    assert [(p["method"], p["rank"], p["seeds"]) for p in found["points"]] == [
        ("lora", 1, 2),
        ("lora", 2, 2),
        ("ia3", None, 2),
    ]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert not list(out.glob("runs/*/state"))


def rows(out) -> dict:
    """The rows that are written so far, and when they were."""
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/row.json")}


def killed_in_the_second_run(out, pid, process):
    """Wait until a row is there and another run has begun, and kill what is at it."""
    while process.poll() is None and not (rows(out) and len(list(out.glob("runs/*/metrics.jsonl"))) > 1):
        time.sleep(0.002)
    before = rows(out)
    os.kill(pid(), signal.SIGKILL)
    return before


def test_a_killed_sweep_does_only_what_is_missing(model, whole, tmp_path):
    """What it writes in the end is, byte for byte, what a sweep writes that was left alone; rows that were there stay."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "refpeft", *sweeping(model, out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        before = killed_in_the_second_run(out, lambda: process.pid, process)
    assert process.returncode == -signal.SIGKILL
    assert 0 < len(before) < 6
    assert not (out / "sweep.json").exists()
    result = refpeft(*sweeping(model, out))
    assert result.exit_code == 0, result.output
    assert before.items() <= rows(out).items()
    assert (out / "sweep.json").read_bytes() == (whole[0] / "sweep.json").read_bytes()


@pytest.mark.parametrize("after", [0.015, 0.3])
def test_an_interrupted_sweep_ends_at_once_and_says_nothing(model, tmp_path, after):
    """A terminal sends Ctrl-C to all processes; those just started, or at their imports, say nothing and do not train."""
    command = [sys.executable, "-m", "refpeft", *sweeping(model, tmp_path / "out", steps=10**6, jobs=2)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    streams |= {
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    }  # which a shell's background ignores
    with subprocess.Popen(command, text=True, **streams) as process:
        while process.poll() is None and not (tmp_path / "out" / "plan.json").exists():
            time.sleep(0.002)
        time.sleep(after)
        os.killpg(process.pid, signal.SIGINT)
        try:
            said = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, *said) == (130, "", "")


def test_a_cluster_that_loses_a_worker_gives_the_same_rows(model, whole, tmp_path):
    """Dask's, with real processes, one of which is killed in the middle of a run."""
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("distributed is not installed")
    out = tmp_path / "cluster"
    (tmp_path / "cluster.py").write_text(CLUSTER)
    command = [sys.executable, tmp_path / "cluster.py", *sweeping(model, out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        before = killed_in_the_second_run(out, lambda: worker, process)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert 0 < len(before) < 6
    assert int(said) != worker
    assert (out / "sweep.json").read_bytes() == (whole[0] / "sweep.json").read_bytes()


CLUSTER = """
import sys
from click.testing import CliRunner
from distributed import LocalCluster
from refpeft.cli import main

if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        print(cluster.workers[0].pid, flush=True)
        result = CliRunner().invoke(main, [*sys.argv[1:], "--dask", cluster.scheduler_address])
        print(cluster.workers[0].pid)
    sys.exit(result.output if result.exit_code else 0)
"""


def test_wrong_sweeps_are_refused_in_a_sentence(model, whole, tmp_path, monkeypatch):
    """Exit status 2, and nothing is begun."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("")
    other, new = tmp_path / "other.jsonl", tmp_path / "new"
    other.write_text((model / "text.jsonl").read_text().replace("rank", "name"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    for changes, said in (
        ({"out": whole[0], "rank": "1"}, "holds another sweep: ranks is [1, 2] there, but [1] is asked for."),
        ({"out": whole[0], "steps": 7}, "holds another sweep: steps is 6 there, but 7 is asked for."),
        ({"out": whole[0], "data": other}, "holds another sweep: data is"),
        ({"out": tmp_path / "full"}, "holds something that is not a sweep; name a new folder."),
        ({"seed": "0,1"}, "--seeds and --seed say the same: give one of them."),
        ({"rank": "1,two"}, "--rank needs whole numbers as 1,2,4, but '1,two' came."),
        ({"rank": "0"}, "LoRA: rank must be at least 1, but 0 came."),
        ({"rank": "1,1"}, "ranks must be one or more, each once, but [1, 1] came."),
        ({"method": "lora,zzz"}, "there is no method 'zzz': 'refpeft methods' lists them."),
        ({"method": "lora, LoRAA"}, "there is no method 'LoRAA': did you mean lora?"),
        ({"method": "lora,"}, "--method needs names with commas between, but 'lora,' came."),
        ({"method": "ia3,prompt"}, "--rank 1,2 needs a method that has a rank, but ia3, prompt came."),
        ({"sequence": 0}, "sequence must be at least 1, but 0 came."),
        ({"method": "lora,xlora"}, "X-LoRA mixes adapters that were trained before, but none came"),
        ({"backend": "cpu", "method": "lora,c3a"}, "backend 'cpu' does not implement c3a.linear"),
        ({"held-out": 1}, "the share held out must lie between 0 and 1, but 1.0 came."),
        ({"held-out": 0.999}, "has 0 tokens to train on, expected at least the 25 of a row."),
        ({"seeds": 0}, "--seeds must be at least 1, but 0 came."),
        ({"jobs": 1, "dask": "x"}, "--jobs is of processes, but with --dask there are none: give one of them."),
        ({"dask": "x"}, "Dask needs distributed, which is not installed: run pip install 'refpeft[dask]'."),
    ):
        result = refpeft(*sweeping(model, changes.pop("out", new), **changes))
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert said in " ".join(result.stderr.split()), result.stderr
        assert not new.exists()


def test_a_sweep_of_a_model_that_has_changed_is_another(model, whole):
    """The same path with another model in it does not go on."""
    config = model / "config.json"
    before = config.read_text()
    changed = json.loads(before) | {"rms_norm_eps": 0.125}
    try:
        config.write_text(json.dumps(changed))
        result = refpeft(*sweeping(model, whole[0]))
    finally:
        config.write_text(before)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "holds another sweep: sha256 of the model is" in " ".join(result.stderr.split())


def test_a_killed_process_is_said():
    """A pool that lost one ends in a sentence, not in a traceback."""
    with pytest.raises(CapabilityError, match="a process was killed"), executors.processes(1) as executor:
        executor.submit(os._exit, 1).result()


class Letters:
    """A tokenizer: a token a letter."""

    def encode(self, text, add_special_tokens):
        return type("Encoding", (), {"ids": [ord(c) for c in text]})


def test_whole_documents_are_held_out_or_the_end_of_the_text(tmp_path):
    """No token is on both sides, and each side keeps the order of the file."""
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("".join(map(chr, range(100, 200))))
    trained, held = text.parted(plain, Letters(), 5, 0.12)
    np.testing.assert_array_equal(trained.reshape(-1), range(100, 185))
    np.testing.assert_array_equal(held.reshape(-1), range(188, 198))

    lines.write_text("\n".join(json.dumps({"text": chr(65 + i) * 10}) for i in range(20)))
    trained, held = text.parted(lines, Letters(), 10, 0.21)
    assert [len(set(row)) for row in (*trained, *held)] == [1] * 20
    assert len(held) == 5
    assert sorted({*trained[:, 0], *held[:, 0]}) == list(range(65, 85))
    assert (np.diff(trained[:, 0]) > 0).all() and (np.diff(held[:, 0]) > 0).all()
    with pytest.raises(FormatError, match="has 1 tokens held out, expected at least the 5 of a row"):
        text.parted(plain, Letters(), 5, 0.001)


def test_a_mean_of_what_diverged_is_said_to_be_anywhere():
    """A loss that is no number, or infinite, leaves an interval without ends."""
    for value in (np.nan, np.inf):
        low, middle, high = intervals.mean([1.0, value])
        assert (low, high) == (-np.inf, np.inf)
        assert not np.isfinite(middle)


def test_intervals_hold_what_they_say():
    """Student's the mean of normal values, the order statistics' the median of skewed ones: in 95 of 100 experiments."""
    random, n = np.random.default_rng(0), 4000
    spread = 5 * (0.95 * 0.05 / n) ** 0.5
    low, middle, high = np.transpose([intervals.mean(list(v)) for v in random.normal(size=(n, 3))])
    assert abs(np.mean((low <= 0) & (high >= 0)) - 0.95) < spread
    assert (low < middle).all()
    low, _, high = np.transpose([intervals.median(list(v)) for v in random.exponential(size=(n, 25))])
    assert 0.95 - spread < np.mean((low <= np.log(2)) & (high >= np.log(2))) < 0.98
    assert intervals.median([3.0, 1.0, 2.0]) == (1.0, 2.0, 3.0)
    assert intervals.mean([2.0]) == (-np.inf, 2.0, np.inf)
