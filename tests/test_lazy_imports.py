"""What refpeft imports, and when: looking costs no more than NumPy and SciPy, help not even these."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys

import pytest

HEAVY = ("torch", "hypothesis", "pytest", "cupy", "jax", "jinja2", "matplotlib", "transformers", "bitsandbytes", "gguf")
LOOKING = {
    "importing refpeft": "import refpeft",
    "listing backends": "from refpeft import plugins; assert 'torch' in plugins.backends()",
    "listing the catalogue": "import refpeft; assert 'lora.linear' in refpeft.catalogue()",
    "asking the oracle": "import refpeft; refpeft.oracle('nn.linear', x=[[1.0]], weight=[[1.0]])",
    "asking who can run": "from refpeft import plugins; [b.unavailable() for b in plugins.backends().values()]",
}


def imported(statements: str) -> set[str]:
    """Top-level names of the modules that a fresh Python has after these statements."""
    ask = f"{statements}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", ask], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize("what", LOOKING)
def test_looking_imports_nothing_heavy(what):
    """No array library but NumPy and SciPy, and nothing of the test kit, is imported by looking."""
    assert imported(LOOKING[what]).isdisjoint(HEAVY)


alone = pytest.mark.skipif(
    bool(importlib.metadata.entry_points(group="refpeft")), reason="other packages bring plugins"
)


@alone
def test_the_programs_help_imports_no_numpy():
    """Of all commands, the kit's among them: click, and what they say of themselves."""
    ask = "[main(a, standalone_mode=False) for a in (['--help'], ['train', '--help'], ['certify', '--help'])]"
    ask = f"import sys; from refpeft.cli import main; out, sys.stdout = sys.stdout, sys.stderr; {ask}; sys.stdout = out"
    assert imported(ask).isdisjoint({"numpy", "scipy", "ml_dtypes", *HEAVY})


@alone
def test_the_catalogue_alone_reads_no_metadata():
    """Where no other package brings a plugin, importlib.metadata, a quarter of the catalogue's import, is left out."""
    imported("import refpeft; refpeft.catalogue(); import sys; assert 'importlib.metadata' not in sys.modules")


def test_the_catalogue_alone_loads_no_interpretation():
    """Names, signatures and sources come without the arithmetic that judges them."""
    looked = "import refpeft, sys; refpeft.catalogue(); names = {n for n in sys.modules if n.startswith('refpeft.')}"
    others = {"refpeft.golden", "refpeft.numerics.interpretations", "refpeft.ops.__init__"}
    imported(f"{looked}; assert names.isdisjoint({others}), names")


def test_the_catalogue_comes_out_of_a_zip_file(tmp_path):
    """As in an application that is one file: whatever lists the families asks the import system, and no folder."""
    import refpeft

    package = shutil.make_archive(str(tmp_path / "z"), "zip", *os.path.split(refpeft.__path__[0]))
    ask = "import refpeft; assert '.zip' in refpeft.__file__ and 'gralora.linear' in refpeft.catalogue()"
    imported(f"import sys; sys.path.insert(0, {package!r}); {ask}")


def test_torch_is_imported_when_it_is_used():
    """The torch backend's operations do import torch: the list above would see it."""
    pytest.importorskip("torch")
    assert "torch" in imported("from refpeft import plugins; plugins.backend('torch').operations()")


def test_refpeft_depends_on_neither_backends_nor_kit():
    """Importing refpeft imports no package that depends on it."""
    assert not {name for name in imported("import refpeft") if name.startswith("refpeft_")}
