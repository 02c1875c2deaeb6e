"""The planner measured: what `refpeft memory --backend cpu` foretells of a training step against what it holds.

    python benchmarks/memory.py SmolLM2-135M-Instruct.Q4_1.gguf --out benchmarks/results/memory.json

Each case is a process of its own: the model is loaded, and two steps are trained as by `refpeft train`, forward, backward and
AdamW. Measured is the peak, from the method's start on, of all that tracemalloc sees, to which NumPy reports its arrays, less
what was there when everything was imported and nothing loaded. Resident memory, which has Python, its libraries and the
optimizer's file as well, stands beside it. Off by more than 5 % is an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({"rank": 8}, "q,v"),
    "dora": ({"rank": 8}, "q,v"),
    "ia3": ({}, "k,v"),
    "adapter": ({"reduction": 16}, ""),
    "prefix": ({"tokens": 20}, ""),
    "prompt": ({"tokens": 20}, ""),
    "ptuning": ({"tokens": 20}, ""),
    "qlora": ({"rank": 8}, "all-linear"),
}
"""Methods as they are trained: their numbers, and the matrices of those that stand at matrices."""
WITHIN = 0.05


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--sequence", default=512, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--only", help="Of the methods, as lora,dora.")
@click.option("--case", type=(str, bool), hidden=True, help="Measure one, in this process.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False))
def main(model: Path, sequence: int, batch: int, only: str | None, case: tuple[str, bool] | None, out: Path | None):
    """Foretell, measure, print and write."""
    if case is not None:
        click.echo(json.dumps(measured(model, *case, sequence, batch)))
        return
    from importlib.metadata import version

    from refpeft.files import atomic_write

    rows = []
    for name in CASES if only is None else only.split(","):
        for checkpointing in (False, True):
            sizes = ["--sequence", str(sequence), "--batch", str(batch), "--case", name, str(checkpointing)]
            own = subprocess.run([sys.executable, __file__, str(model), *sizes], check=True, capture_output=True)
            found = foretold(model, name, checkpointing, sequence, batch)
            row = {"method": name, "checkpointing": checkpointing, "foretold": found, **json.loads(own.stdout)}
            rows.append(row | {"off": found / row["measured"] - 1})
            click.echo(
                f"{name:8} {'checkpointing' if checkpointing else '':14} foretold {found / 1e6:8.1f} MB   "
                f"measured {row['measured'] / 1e6:8.1f} MB ({rows[-1]['off']:+.2%})   resident {row['resident'] / 1e6:8.1f} MB"
            )
    if out:
        what = {"model": model.name, "sequence": sequence, "batch": batch, "numpy": version("numpy"), "rows": rows}
        atomic_write(out, (json.dumps(what, indent=1) + "\n").encode())
    if wrong := [f"{row['method']} {row['off']:+.2%}" for row in rows if abs(row["off"]) > WITHIN]:
        raise click.ClickException(f"not as foretold: {', '.join(wrong)}.")


def chosen(shape, name: str, checkpointing: bool, batch: int):
    """The method in a model of this shape, its sites, and how it is trained."""
    from refpeft.training import choice, loop

    numbers, targets = CASES[name]
    method, sites = choice.at(shape, choice.configured(name, **numbers), targets)
    settings = loop.Settings(steps=2, batch=batch, checkpointing=checkpointing)
    return method, sites, settings


def foretold(model: Path, name: str, checkpointing: bool, sequence: int, batch: int) -> int:
    """Bytes, from the file's header alone."""
    from refpeft.memory.models import read
    from refpeft.memory.rehearsal import rehearse
    from refpeft.training import choice

    shape = read(str(model))
    parts = rehearse(shape, *chosen(shape, name, checkpointing, batch), sequence, quantise=choice.base(name, None))
    return sum(part.bytes for part in parts)


def measured(model: Path, name: str, checkpointing: bool, sequence: int, batch: int) -> dict[str, int]:
    """Bytes at the peak, and those that the process has had resident."""
    import resource
    import tempfile
    import tracemalloc

    import numpy as np

    from refpeft.models import load
    from refpeft.training import choice, loop

    foretold(model, name, checkpointing, sequence, batch)  # imports all that training imports
    tracemalloc.start()
    decoder = load(model, backend="cpu", quantise=choice.base(name, None))
    method, sites, settings = chosen(decoder.shape, name, checkpointing, batch)
    ids = np.random.default_rng(0).integers(0, decoder.shape.vocabulary, (settings.steps * batch, sequence + 1))
    tracemalloc.reset_peak()
    with tempfile.TemporaryDirectory() as folder:
        loop.train(decoder, method, sites, ids, settings, Path(folder) / "run", {})
    _, peak = tracemalloc.get_traced_memory()
    return {"measured": peak, "resident": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


if __name__ == "__main__":
    main()
