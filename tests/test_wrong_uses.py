"""Wrong uses of the commands that read models and texts: one sentence, exit status 2, and no file that was not there."""

from __future__ import annotations

import shutil

import pytest
from click.testing import CliRunner

from refpeft import cli
from refpeft.cli import main


@pytest.fixture
def here(tiny_llama, tmp_path, monkeypatch):
    """A folder with a model, one whose tokenizer is none, a text, and files of options."""
    pytest.importorskip("tokenizers")
    shutil.copytree(tiny_llama, tmp_path / "model")
    for name, content in (("empty", b"{}"), ("junk", b"\xff\x00\x80junk")):
        shutil.copytree(tiny_llama, tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_bytes(content)
    (tmp_path / "text.txt").write_text("In the beginning there was a matrix. " * 9)
    for name, line in (
        ("list", "rank = [1, 2]"),
        ("table", "[rank]\na = 1"),
        ("half", "tokens = 1.5"),
        ("true", "rank = true"),
        ("tokens", "tokens = 5"),
    ):
        (tmp_path / f"{name}.toml").write_text(line + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = "train model --data text.txt --out new --steps 1 --sequence 8 --batch 1"
SWEEP = "sweep --model model --data text.txt --out new --steps 1 --sequence 8 --batch 1 --seeds 1"
CONTEXT = "model has positions for 2048 tokens, but 100007 came, 99999 of them virtual."
WRONG = {
    **{
        f"{line} --method {name} --tokens 99999": CONTEXT
        for line, names in (
            (TRAIN, ("prompt", "prefix", "ptuning", "cartridge")),
            (SWEEP, ("cpt", "lora,mam", "ptuning_v2")),
        )
        for name in names
    },
    "memory model --method prefix --option tokens=99999 --sequence 8": CONTEXT,
    "memory model --sequence 4096": "model has positions for 2048 tokens, but 4096 came.",
    f"{TRAIN} --rank 1000000000000": "needs at least 3,648,000 GB of memory beside the model, for a row of 8",
    f"{SWEEP} --rank 1,1000000000000": "needs at least 3,648,000 GB of memory beside the model, for a row of 8",
    f"{TRAIN} --method adaption_prompt --tokens 9999999999999": "AdaptionPrompt in model needs at least 10,240,000 GB of memory",
    "train empty --data text.txt --out new": "empty/tokenizer.json is no tokenizer of the tokenizers package",
    "evaluate junk --data text.txt": "junk/tokenizer.json is no tokenizer of the tokenizers package",
    "generate junk --prompt a": "junk/tokenizer.json is no tokenizer of the tokenizers package",
    f"{TRAIN} --seed -1": "seed must be 0 or more, but -1 came",
    "generate model --prompt a --seed -1": "-1 is not in the range x>=0",
    f"{TRAIN} --method ia3 --rank 4": "--rank 4 needs a method that has a rank, but ia3 came.",
    f"{TRAIN} --method prompt --targets q": "--targets q needs a method that stands at matrices, but prompt came.",
    f"{TRAIN} --method lora --config tokens.toml": "--tokens 5 needs a method that has tokens, but lora came.",
    f"{SWEEP} --method lora,ia3 --reduction 4": "--reduction 4 needs a method that has a reduction, but lora, ia3 came.",
    f"{TRAIN} --config list.toml": "--config list.toml: rank must be one value, but [1, 2] came",
    f"{TRAIN} --config table.toml": "--config table.toml: rank must be one value, but {'a': 1} came",
    f"{TRAIN} --config half.toml": "'1.5' is not a valid integer",
    f"{TRAIN} --config true.toml": "'True' is not a valid integer",
    "memory model --rank 3 --option rank=2": "lora: the rank is given twice, as 3 and as 2",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(here, line):
    """Exit status 2, nothing on standard output, nothing written."""
    before = sorted(here.rglob("*"))
    result = CliRunner().invoke(main, line.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert WRONG[line] in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_too_little_memory_is_one_sentence():
    """What could not be held is NumPy's to say."""
    said = "the memory of this machine does not suffice: Unable to allocate"
    with pytest.raises(cli.Failure, match=said), cli.one_sentence():
        raise MemoryError("Unable to allocate 2.27 PiB")
