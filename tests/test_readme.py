"""The README is true: its commands and examples are run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import refpeft
from refpeft.methods import methods

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [text for kind, text in BLOCKS if kind == language]


def test_the_first_two_shell_blocks_are_the_two_commands():
    """One line that installs and certifies torch, one that installs and runs the tests."""
    certify, test = blocks("sh")[:2]
    assert certify.count("\n") == test.count("\n") == 1
    assert "pip install" in certify
    assert "&& refpeft certify torch" in certify
    assert "pip install" in test
    assert "pytest" in test


def test_ci_runs_the_readmes_test_command():
    """`.ci/run` takes the second block from the README, so that there is nothing else to know."""
    script = (ROOT / ".ci" / "run").read_text()
    assert "block == 2" in script
    assert "pytest" not in script


def test_the_one_liner_names_the_forgotten_scaling():
    """A kernel without the scaling fails with the message that the README shows."""
    rng = np.random.default_rng(0)
    shapes = {"x": (4, 32), "weight": (24, 32), "a": (8, 32), "b": (24, 8)}
    inputs = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    source = blocks("python")[0]

    def my_lora_kernel(x, weight, a, b, scaling):
        return x @ weight.T + (x @ a.T) @ b.T

    with pytest.raises(AssertionError, match=r"does not conform") as error:
        exec(source, inputs | {"my_lora_kernel": my_lora_kernel})
    assert str(error.value).endswith("the output lies within the budget of fault 'scaling lost', and of no other")
    assert str(error.value).splitlines()[0] in README


def test_the_property_test_finds_the_planted_bug(tmp_path):
    """The ten lines fail under pytest in a folder of their own; without the bug they pass."""
    source = next(block for block in blocks("python") if "@given" in block)
    (tmp_path / "test_bug.py").write_text(source)
    (tmp_path / "test_right.py").write_text(source.replace("a[:-1]", "a").replace("b[:, :-1]", "b"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    wrong = subprocess.run([*command, "test_bug.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    right = subprocess.run([*command, "test_right.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 1, wrong.stdout
    assert "does not conform" in wrong.stdout
    assert right.returncode == 0, right.stdout


def test_the_paged_run_goes_on_where_it_was_killed(tmp_path):
    """Killed as soon as it has committed something, and run again, it says what an undisturbed run says."""
    source = next(block for block in blocks("python") if "PagedAdamW(lora" in block)
    said = []
    for name, kill in (("whole", False), ("killed", True)):
        (tmp_path / name).mkdir()
        command = {
            "args": [sys.executable, "-c", source],
            "cwd": tmp_path / name,
            "text": True,
            "stdout": subprocess.PIPE,
        }
        if kill:
            with subprocess.Popen(**command) as run:
                while not (tmp_path / name / "run" / "record.json").exists() and run.poll() is None:
                    time.sleep(0.01)
                run.kill()
        run = subprocess.run(**command, timeout=120)
        assert run.returncode == 0
        said.append(run.stdout)
    assert said[0] == said[1]
    assert re.fullmatch(r"mean square 0\.\d+ after 100 steps\n", said[0])


def test_mam_in_a_model_is_two_methods(tiny_llama):
    """The lines run on a small model; all that both methods train gets a gradient, and as many numbers as they count."""
    source = next(block for block in blocks("python") if "import MAM" in block)
    exec(source.replace("SmolLM2-135M-Instruct.Q4_1.gguf", str(tiny_llama)), made := {})
    model, shape = made["model"], made["model"].shape
    assert made["gradients"].keys() == model.trained.keys()
    sizes = {"layers": shape.layers, "width": shape.width}
    keys = sizes | {"heads": shape.heads, "kv_heads": shape.kv_heads}
    prefix = methods()["prefix"](tokens=30, size=shape.head_size, hidden=800)
    counted = prefix.count(**keys) + methods()["parallel_adapter"](reduction=2).count(**sizes)
    assert sum(model.host(gradient).size for gradient in made["gradients"].values()) == counted


def table() -> dict[str, list[str]]:
    """The cells of each row of the README's tables that begins with a name in code."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row for row in rows}


def test_the_readme_counts_the_methods():
    """As many as there are."""
    assert f"\n{len(methods())} methods, each an operation" in README


@pytest.mark.parametrize("name", methods())
def test_every_method_stands_in_the_table(name):
    """With its paper, whether it merges, and what it is called in peft and AdapterHub."""
    cls, (_, _, paper, merges, peft, adapters) = methods()[name], table()[name]
    assert paper == cls.paper
    assert merges == ("no" if cls.not_mergeable else "yes")
    assert peft == (", ".join(cls.peft) or "-")
    assert adapters == (", ".join(cls.adapters) or "-")


def test_every_operation_stands_in_a_table_or_belongs_to_a_method():
    """What is covered is what the catalogue has."""
    families = {cls.operation.partition(".")[0] for cls in methods().values()}
    assert [n for n in refpeft.catalogue() if n.partition(".")[0] not in families and f"`{n}`" not in README] == []


def test_the_configurations_of_adapters_that_are_not_here_are_named():
    """Every configuration that the installed adapters lists is some method's, or stands in the README among the missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listed = pytest.importorskip("adapters").ADAPTER_CONFIG_MAP.values()
    here = {name.partition(":")[0] for cls in methods().values() for name in cls.adapters}
    said = re.search(r"adapters 1.3, these are not:\s([A-Za-z,\s]*)\.", README).group(1)
    assert {type(how).__name__ for how in listed} - here == set(re.split(r",\s", said))


def test_the_types_of_peft_that_are_not_here_are_named():
    """Every ``PeftType`` of the installed peft is some method's, or stands in the README among those that are missing."""
    types = pytest.importorskip("peft.utils.peft_types").PeftType
    here = {name.partition(":")[0] for cls in methods().values() for name in cls.peft}
    said = re.search(r"these are not here yet: ([A-Z_, ]*)\.", README)
    missing = set(said.group(1).split(", ")) if said else set()
    assert {t.value for t in types} - here == missing
