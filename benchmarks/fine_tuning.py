"""Eight methods on a real model and a real text: what each makes of documents that it was not trained on.

    python benchmarks/fine_tuning.py SmolLM2-135M-Instruct.Q4_1.gguf --folder runs --out benchmarks/results/fine_tuning.json

The text is Python's reference manual as pydoc has it: each topic is a document, and ten long ones are held out. A method's gain
is by how much the mean loss of a held-out document falls, in nats a token, against the untrained base (QLoRA's in 4 bits). It
must exceed three standard errors, over seeds and over documents. Beside the methods runs LoRA with the sign of its gradients
turned, which must not gain. A run that is in the folder is not done again; what was killed goes on.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from about import about

HELD, ROWS = 10, 8
"""Documents held out, and rows of each."""

SEQUENCE, BATCH = 64, 2


class Trial(NamedTuple):
    """A method as it is trained."""

    method: str
    numbers: dict[str, Any]
    lr: float
    targets: str = "q,v"
    optimizer: str = "adamw"
    sign: int = 1
    text: str = ""


_LORA = {"rank": 8, "alpha": 16.0}
TRIALS = {
    "lora": Trial("lora", _LORA, 1e-3),
    "dora": Trial("dora", _LORA, 1e-3),
    "ia3": Trial("ia3", {}, 1e-2, "k,v"),
    "adapter": Trial("houlsby", {"reduction": 16}, 1e-3),
    "prefix": Trial("prefix", {"tokens": 20}, 1e-4, text="This is a chapter of Python's reference manual."),
    "prompt": Trial("prompt", {"tokens": 20}, 1e-2),
    "ptuning": Trial("ptuning", {"tokens": 20}, 1e-3),
    "qlora": Trial("qlora", _LORA, 1e-3, optimizer="paged-adamw"),
    "lora with the wrong sign": Trial("lora", _LORA, 1e-3, sign=-1),
}


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where runs are kept.")
@click.option("--steps", default=200, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--only", help="Of the methods, as lora,dora.")
@click.option("--jobs", default=1, show_default=True, help="Processes at a time.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False))
def main(model: Path, folder: Path, steps: int, seeds: int, only: str | None, jobs: int, out: Path | None) -> None:
    """Train, measure and write."""
    from refpeft import __version__
    from refpeft.files import atomic_write
    from refpeft.training import executors

    begun = {"refpeft": __version__} | about()
    chosen = [name for name in TRIALS if only is None or name in only.split(",")]
    digest, count = write_text(folder)
    runs = [(name, seed) for name in chosen for seed in range(seeds if TRIALS[name].sign > 0 else 1)]
    with executors.processes(jobs) as executor:
        bases = [executor.submit(base, model, folder, four_bits) for four_bits in (False, True)]
        futures = [executor.submit(trained, model, folder, name, seed, steps) for name, seed in runs]
        for future in bases + futures:
            future.result()
    found = [*untrained(folder), *(summary(folder, name, seeds) for name in chosen)]
    for row in found:
        click.echo("  ".join(f"{value:.4g}" if isinstance(value, float) else f"{value}" for value in row.values()))
    if out:
        from importlib.metadata import version

        what = begun | {
            "model": model.name,
            "text": f"Python {sys.version.split()[0]}'s pydoc_data.topics",
            "sha256": digest,
        }
        what |= {
            "documents": count,
            "held_out": HELD,
            "rows": ROWS,
            "steps": steps,
            "batch": BATCH,
            "sequence": SEQUENCE,
        }
        what |= {"numpy": version("numpy"), "trials": {name: TRIALS[name]._asdict() for name in chosen}}
        atomic_write(out, (json.dumps(what | {"table": found}, indent=1) + "\n").encode())
    if wrong := [row["name"] for row in found[2:] if row["gains"] != (TRIALS[row["name"]].sign > 0)]:
        raise click.ClickException(f"not as it must be: {', '.join(wrong)}.")


def write_text(folder: Path) -> tuple[str, int]:
    """The documents into the folder, those held out each in a file of its own; the digest of all, and how many they are."""
    import hashlib
    from pydoc_data.topics import topics

    from refpeft.files import atomic_write

    texts = [topics[name] for name in sorted(topics)]
    long = [i for i, text in enumerate(texts) if len(text) > 4000]
    held = set(np.random.default_rng(0).permutation(long)[:HELD].tolist())
    (folder / "held").mkdir(parents=True, exist_ok=True)
    for i in held:
        atomic_write(folder / "held" / f"{i:02}.txt", texts[i].encode())
    lines = (json.dumps({"text": text}) + "\n" for i, text in enumerate(texts) if i not in held)
    atomic_write(folder / "trained.jsonl", "".join(lines).encode())
    return hashlib.sha256("\0".join(texts).encode()).hexdigest(), len(texts)


def held_out(model, path: Path, folder: Path) -> list[float]:
    """The mean loss of each document that is held out."""
    from refpeft.models.tokens import tokenizer
    from refpeft.training import text
    from refpeft.training.evaluation import mean_loss

    files = sorted((folder / "held").iterdir())
    return [mean_loss(model, text.rows(file, tokenizer(path), SEQUENCE + 1)[:ROWS], ROWS) for file in files]


def loaded(path: Path, four_bits: bool):
    from refpeft.convert.quantise import Settings
    from refpeft.models import load

    return load(path, backend="cpu", quantise=Settings(double=True) if four_bits else None)


def base(path: Path, folder: Path, four_bits: bool) -> None:
    """Measure what the untrained model makes of the documents."""
    from refpeft.files import atomic_write

    if not (file := _base(folder, four_bits)).exists():
        atomic_write(file, json.dumps({"losses": held_out(loaded(path, four_bits), path, folder)}).encode())


def trained(path: Path, folder: Path, name: str, seed: int, steps: int) -> None:
    """One run, and what it makes of the documents."""
    from refpeft.files import atomic_write
    from refpeft.models.tokens import tokenizer
    from refpeft.training import choice, loop, text

    if (file := _run(folder, name, seed) / "row.json").exists():
        return
    trial, model, words = TRIALS[name], loaded(path, name == "qlora"), tokenizer(path)
    if trial.sign < 0:
        _turn(model)
    method, sites = choice.at(model.shape, choice.configured(trial.method, **trial.numbers), trial.targets)
    ids, start = text.rows(folder / "trained.jsonl", words, SEQUENCE + 1), text.token_ids(trial.text, words)
    numbers: dict[str, Any] = {"steps": steps, "batch": BATCH, "lr": trial.lr, "optimizer": trial.optimizer}
    settings = loop.Settings(**numbers, seed=seed, warmup=10, start_text=start)
    losses = loop.train(model, method, sites, ids, settings, file.parent, {"model": str(path), "trial": name})
    count = sum(math.prod(array.shape) for array in model.trained.values())
    atomic_write(
        file, json.dumps({"trained": count, "losses": losses, "after": held_out(model, path, folder)}).encode()
    )


def untrained(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of the table for the model as it is, and in 4 bits."""
    for name, four_bits in (("untrained", False), ("untrained, 4 bits", True)):
        yield {"name": name, "trained": 0, "perplexity": math.exp(statistics.fmean(_losses(folder, four_bits)))}


def summary(folder: Path, name: str, seeds: int) -> dict[str, Any]:
    """A method's row. A gain counts where it is above three standard errors over seeds, and three over documents."""
    runs = [json.loads(file.read_text()) for s in range(seeds) if (file := _run(folder, name, s) / "row.json").exists()]
    gains = np.array(_losses(folder, name == "qlora")) - np.array([run["after"] for run in runs])
    over_seeds, over_documents = (_error(gains.mean(axis=axis)) for axis in (1, 0))
    gain = float(gains.mean())
    return {
        "name": name,
        "trained": runs[0]["trained"],
        "perplexity": statistics.fmean(math.exp(statistics.fmean(run["after"])) for run in runs),
        "gain": gain,
        "error_over_seeds": over_seeds,
        "error_over_documents": over_documents,
        "gains": gain > 3 * max(over_seeds, over_documents),
        "seeds": len(runs),
    }


def _error(values: np.ndarray) -> float:
    """The standard error of their mean; none from one."""
    return statistics.stdev(values.tolist()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _turn(model) -> None:
    """Give the model's gradients the wrong sign."""
    loss = model.loss

    def turned(*arguments, **numbers):
        value, gradients = loss(*arguments, **numbers)
        return value, {name: -gradient for name, gradient in gradients.items()}

    model.loss = turned


def _run(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(' ', '-')}-{seed}"


def _base(folder: Path, four_bits: bool) -> Path:
    return folder / f"untrained{'-4-bits' if four_bits else ''}.json"


def _losses(folder: Path, four_bits: bool) -> list[float]:
    return json.loads(_base(folder, four_bits).read_text())["losses"]


if __name__ == "__main__":
    main()
