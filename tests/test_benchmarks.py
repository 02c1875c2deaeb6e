"""What benchmarks write says of which state of refpeft it is."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import refpeft

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_a_table_of_fine_tuning_names_version_and_commit(tmp_path, monkeypatch):
    """As the other benchmarks' do; here of no method, over runs that are there."""
    pytest.importorskip("pydoc_data.topics")
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("about", "fine_tuning"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import fine_tuning

    (tmp_path / "model.gguf").touch()
    for four_bits in (False, True):
        fine_tuning._base(tmp_path, four_bits).write_text(json.dumps({"losses": [1.0] * fine_tuning.HELD}))
    out = tmp_path / "table.json"
    arguments = [tmp_path / "model.gguf", "--folder", tmp_path, "--only", "none", "--out", out]
    done = CliRunner().invoke(fine_tuning.main, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert found["refpeft"] == refpeft.__version__
    assert found["when"].endswith("+00:00")
    if (FOLDER.parent / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?", found["commit"])
