"""A training step of LoRA on q and v: refpeft's decoder on its cpu backend against transformers with peft, in one run.

    OMP_NUM_THREADS=2 python benchmarks/training.py --out benchmarks/results/training.json

Forward, backward and AdamW in float32, rank 8, no dropout, the same random weights and adapters; the losses of the first step
must agree. Each has a process of its own, and rounds alternate; medians with an interval that holds the median with 95 %.
``limit`` is the products of the step (each weight once forward, and once for the gradient to its input; attention causal) at the
rate of ``np.matmul`` in that run.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import click
import numpy as np

from refpeft.intervals import alternating, seconds

SIZES = {
    "S1": (2, 64, 64, 8),
    "S2": (4, 128, 128, 8),
    "S3": (4, 256, 128, 8),
    "S4": (6, 384, 256, 4),
    "S5": (8, 512, 256, 4),
}
"""Layers, width, tokens of a row, rows."""
VOCABULARY, RANK, SCALING, LR = 256, 8, 2.0, 1e-3


@click.command()
@click.option("--sizes", default="S1,S2,S3,S4,S5", show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False))
def main(sizes: str, rounds: int, out: Path | None) -> None:
    """Time, print and write."""
    from refpeft_cpu import threads

    rows = []
    rate = product_rate()
    click.echo(f"np.matmul: {2 * rate / 1e9:.0f} GFLOP/s on {threads.count()} threads")
    for name in sizes.split(","):
        with tempfile.TemporaryDirectory() as folder, steps(*SIZES[name], Path(folder)) as (ours, theirs):
            first, second = ours(), theirs()
            if abs(first - second) > 1e-4 * abs(first):
                raise click.UsageError(f"{name}: the losses {first} and {second} differ: there is nothing to time.")
            row = {"size": name} | alternating(ours, theirs, rounds) | {"limit": products(*SIZES[name]) / rate}
        rows.append(row)
        low, median, high = row["ratio"]
        click.echo(
            f"{name} {1e3 * row['ours'][1]:8.1f} ms   transformers and peft {1e3 * row['theirs'][1]:8.1f} ms   "
            f"times ours {median:.2f} ({low:.2f} to {high:.2f})   limit {1e3 * row['limit']:.1f} ms"
        )
    if out:
        from importlib.metadata import version

        from refpeft.files import atomic_write

        versions = {name: version(name) for name in ("numpy", "torch", "transformers", "peft")}
        content = {"machine": platform.machine(), "threads": threads.count(), "versions": versions, "rows": rows}
        atomic_write(out, (json.dumps(content, indent=1) + "\n").encode())


@contextmanager
def steps(
    layers: int, width: int, length: int, count: int, folder: Path
) -> Iterator[tuple[Callable[[], float], Callable[[], float]]]:
    """A step of refpeft, and one of peft in a process of its own, where neither has the other's threads and memory."""
    from refpeft.methods import LoRA
    from refpeft.models import load
    from refpeft.training import PagedAdamW

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=peer, args=(layers, width, folder, theirs), daemon=True).start()
    ours.recv()
    model = load(folder, backend="cpu")
    random = np.random.default_rng(0)
    model.attach("layers.*.attn.q,layers.*.attn.v", LoRA(rank=RANK, alpha=RANK * SCALING), random)
    size = 8 * sum(p.size for p in model.trained.values())
    optimizer = PagedAdamW(model.trained, lr=LR, budget=size + 2**21, page_size=2**20, backend="cpu", decay=0.0)
    ids = random.integers(0, VOCABULARY, (count, length + 1))
    ours.send((ids, {name: array.copy() for name, array in model.trained.items()}))
    ours.recv()

    def step() -> float:
        loss, gradients = model.loss(ids)
        optimizer.step(gradients)
        return loss

    def asked() -> float:
        ours.send(True)
        return ours.recv()

    yield step, asked
    ours.send(False)


def peer(layers: int, width: int, folder: Path, pipe: Connection) -> None:
    """Save a random model, take ids and adapters, and make a step whenever asked."""
    import peft
    import torch
    import transformers

    from refpeft_cpu import threads

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads.count())
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, tie_word_embeddings=False,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(config)
    base.save_pretrained(folder)
    pipe.send("saved")
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=RANK, lora_alpha=int(RANK * SCALING), target_modules=["q_proj", "v_proj"])
    )
    ids, arrays = pipe.recv()
    for i, layer in enumerate(model.base_model.model.model.layers):
        for name in "qv":
            module = getattr(layer.self_attn, f"{name}_proj")
            module.lora_A["default"].weight.data = torch.from_numpy(arrays[f"layers.{i}.attn.{name}.a"])
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    tokens = torch.from_numpy(ids)
    pipe.send("ready")
    while pipe.recv():
        adamw.zero_grad()
        logits = model(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))
        loss.backward()
        adamw.step()
        pipe.send(loss.item())


def products(layers: int, width: int, length: int, count: int) -> float:
    """Multiplications with addition of a step."""
    tokens = count * length
    weights = layers * (4 * width * width + 3 * 4 * width * width) + VOCABULARY * width
    adapters = layers * 2 * 2 * RANK * width
    attention = layers * 2 * width * length / 2
    return tokens * (2 * weights + 3 * adapters + 3 * attention)


def product_rate() -> float:
    """Multiplications with addition a second, the best of several products of 1536 by 1536."""
    a, b = np.random.default_rng(0).normal(size=(2, 1536, 1536)).astype(np.float32)
    return 1536**3 / min(seconds(lambda: a @ b) for _ in range(8))


if __name__ == "__main__":
    main()
