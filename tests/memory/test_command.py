"""``refpeft memory``: the account as a table, JSON and a picture; bad requests end in one sentence."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from refpeft.cli import main

QLORA = ("llama-65b", "--method", "qlora", "--rank", 64, "--adapter-dtype", "bf16", "--optimizer", "paged-adamw")


def run(*arguments):
    return CliRunner().invoke(main, ["memory", *map(str, arguments)])


def test_the_parts_add_up_to_the_total():
    """In JSON every byte of the total is in a part; the paged ones are marked."""
    result = run(*QLORA, "--gpu", "48GB", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["bytes"] == sum(part["bytes"] for part in found["parts"])
    assert [part["name"] for part in found["parts"] if part["paged"]] == ["optimizer state"]
    assert (found["parameters"], found["trained"], found["fits"]) == (65_285_660_672, 799_539_200, "yes")
    assert found["run"]["quantised"] == "nf4-double"


def test_the_table_shows_every_part():
    """One line for each part, and the total; what it means stands beside the results."""
    result = run(*QLORA)
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0] == ["part", "GB", "bytes", "arithmetic"]
    assert ["4-bit weights", "32.380", "32380026880", "1/2 x 64,760,053,760"] in lines
    assert lines[-1][0] == "total"
    assert "trained 799,539,200 (1.225 %)" in result.stderr


def test_the_readme_shows_what_is_printed():
    """Each line of its table, cell by cell."""
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    lines = readme.partition("$ refpeft memory llama-65b")[2].partition("```")[0].splitlines()[1:]
    shown = [re.split(r"\s{2,}", line.strip()) for line in lines if line != "..."]
    printed = [[cell for cell in line.split("\t") if cell] for line in run(*QLORA).stdout.splitlines()]
    assert len(shown) > 4
    assert [line for line in printed if line in shown] == shown


@pytest.mark.parametrize(("gpu", "fits", "status"), [("40GB", "paged", 0), ("38000MB", "no", 1), ("43GiB", "yes", 0)])
def test_the_exit_status_says_whether_it_fits(gpu, fits, status):
    """1 where it fits not even with the optimizer's state on the host."""
    result = run(*QLORA, "--gpu", gpu, "--json")
    assert (json.loads(result.stdout)["fits"], result.exit_code) == (fits, status)


def test_claims_are_printed():
    """All hold, and each shows its arithmetic."""
    result = run("--claims", "--json")
    assert result.exit_code == 0
    assert all(claim["holds"] and "=" in claim["arithmetic"] for claim in json.loads(result.stdout)[:3])


def test_a_picture_is_drawn(tmp_path):
    """A PNG with both bars, under its name only when it is whole."""
    pytest.importorskip("matplotlib")
    result = run(*QLORA, "--gpu", "48GB", "--plot", tmp_path / "a.png")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_without_matplotlib_a_picture_is_refused(tmp_path, monkeypatch):
    """By what to install; nothing is written."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(*QLORA, "--plot", tmp_path / "a.png")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pip install 'refpeft[plot]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_with_a_backend_training_is_rehearsed(tmp_path):
    """In fp32, as `refpeft train` has it; the parts add up, and less is held where blocks are computed again."""
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    small = (tmp_path, "--backend", "cpu", "--rank", 2, "--sequence", 32, "--json")
    kept, again = (json.loads(run(*small, f"--{no}checkpointing").stdout) for no in ("no-", ""))
    assert (kept["backend"], kept["run"]["dtype"]) == ("cpu", "fp32")
    assert kept["bytes"] == sum(part["bytes"] for part in kept["parts"]) > again["bytes"]
    assert {"weights", "adapter", "optimizer state", "nn.attention"} <= {part["name"] for part in kept["parts"]}


REHEARSED = ("llama-7b", "--backend", "cpu")

BAD = {
    "full on a backend": ((*REHEARSED, "--method", "full"), "'refpeft train', which has no --method full"),
    "bf16 on a backend": ((*REHEARSED, "--dtype", "bf16"), "--backend trains in fp32, but --dtype bf16 came"),
    "fused on a backend": ((*REHEARSED, "--fused-attention"), "--fused-attention is of the account"),
    "a picture of a backend": ((*REHEARSED, "--plot", "a.png"), "--plot draws the account"),
    "another library's backend": (("llama-7b", "--backend", "torch"), "what torch holds is its library's affair"),
    "no model": ((), "memory needs a MODEL"),
    "an unknown model": (("llama-70b",), "There is no model 'llama-70b': expected one of gpt3-175b, llama-7b"),
    "an unknown method": (("llama-7b", "--method", "lorra"), "There is no method 'lorra': did you mean lora?"),
    "a method on others": (
        ("llama-7b", "--method", "xlora"),
        "because the adapters that its gates weigh are trained before",
    ),
    "biases that are none": (("llama-7b", "--method", "bitfit"), "it trains nothing in llama-7b"),
    "tokens that are none": (
        ("llama-7b", "--method", "trainable_tokens", "--option", "tokens=a"),
        "tokens must be integers, as 1,2, but 'a' came",
    ),
    "tokens past the table": (
        ("llama-7b", "--method", "trainable_tokens", "--option", "tokens=999999999"),
        "TrainableTokens: tokens must be below the table's 32000 rows, but (999999999,) came",
    ),
    "fewer tokens than one": (("llama-7b", "--method", "prompt", "--option", "tokens=-3"), "at least 1, but -3 came"),
    "not a number of tokens": (("llama-7b", "--method", "prompt", "--option", "tokens=nan"), "an integer, but 'nan'"),
    "more tokens than positions": (("gpt3-175b", "--sequence", 2049), "positions for 2048 tokens, but 2049 came"),
    "a prompt too long to rehearse": (
        (*REHEARSED, "--method", "prompt", "--option", "tokens=999999999"),
        "a rehearsal takes at most 262,144 tokens in a row, a prompt's or a prefix's among them, but 1,000,000,511 came",
    ),
    "a batch too large to rehearse": ((*REHEARSED, "--batch", 10**20), "at most 16,777,216 tokens in a step, but 51"),
    "a rank too large to rehearse": ((*REHEARSED, "--rank", 10**9), "at most 10,000,000,000 trained parameters, but 2"),
    "a rank of 0": (("llama-7b", "--rank", 0), "LoRA: rank must be at least 1, but 0 came"),
    "a rank where there is none": (("llama-7b", "--method", "prompt", "--rank", 3), "prompt has no rank, but 3 came"),
    "a width that is no reduction": (
        ("llama-7b", "--method", "adapter", "--rank", 4000),
        "rank 4000 must be the width 4096 over",
    ),
    "an unknown option": (
        ("llama-7b", "--option", "ranks=3"),
        "lora has no option 'ranks'; its options are rank, alpha",
    ),
    "an option of another type": (("llama-7b", "--option", "rank=x"), "lora: rank must be an integer, but 'x' came"),
    "an option of full": (("llama-7b", "--method", "full", "--rank", 3), "--method full takes neither"),
    "an unknown target": (("llama-7b", "--targets", "q,qkv"), "a block of llama-7b has no matrix 'qkv'"),
    "an unknown dtype": (("llama-7b", "--dtype", "fp8"), "dtype must be one of fp32, bf16, fp16, got 'fp8'"),
    "an empty batch": (("llama-7b", "--batch", 0), "batch must be at least 1, got 0"),
    "a quantised model trained": (
        ("llama-7b", "--method", "full", "--quantised", "nf4"),
        "weights in nf4 cannot be trained",
    ),
    "a GPU of no size": (("llama-7b", "--gpu", "48 elephants"), "--gpu needs a size as 48GB or 47.5GiB"),
    "a picture of another kind": (("llama-7b", "--plot", "a.svg"), "its name must end in .png, but 'a.svg' came"),
    "claims of a model": (("llama-7b", "--claims"), "--claims takes no MODEL"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_end_in_one_sentence(what):
    """Exit status 2, nothing on standard output, and the sentence names what was wrong."""
    arguments, said = BAD[what]
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_that_is_no_json_ends_in_one_sentence(tmp_path):
    """Neither GGUF nor a JSON object."""
    (tmp_path / "config.json").write_text("[1]")
    assert "config.json must be a JSON object" in run(tmp_path).stderr
