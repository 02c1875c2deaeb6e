"""A training step of LoRA on q and v: refpeft's decoder on its cpu backend against transformers with peft, or against torch by
hand (``eager.py``), in one run.

    OMP_NUM_THREADS=2 python benchmarks/training.py --out benchmarks/results/training.json
    OMP_NUM_THREADS=2 python benchmarks/training.py --against eager --out benchmarks/results/training_eager.json

Forward, backward and AdamW in float32, rank 8, the same random weights and adapters; the losses, without dropout, must agree
before anything is timed. Each has a process of its own, and rounds alternate, with rests between, so that neither is slowed
by the other's threads. A round is as many steps in a row as take half a second, after as many that do not count, for those
after a rest are slower; medians of a step, with an interval that holds the median with 95 %. A feed-forward layer is 8/3 as
wide as the model, as Llama's. ``limit`` is the products of the step (each weight once forward, and once for the gradient to
its input; attention causal) at the rate of ``np.matmul`` in that run. ``--uneven`` is the same with dropout, rows of unequal
lengths and grouped heads.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from about import about

from refpeft.intervals import alternating, seconds

RANK, SCALING, LR, DROPOUT = 8, 2.0, 1e-3, 0.05
MOST = 41
"""Rounds: the interval of their median is then narrow."""
REST = 0.1
"""Seconds after which the threads of OpenBLAS and of torch's OpenMP no longer spin."""
ROUND = 0.5
"""Seconds of steps in a row."""


class Size(NamedTuple):
    """Of a model of Llama's type and of a batch."""

    layers: int
    width: int
    length: int
    rows: int
    vocabulary: int = 256
    inner: float = 8 / 3
    head: int = 32
    group: int = 1

    @property
    def heads(self) -> int:
        """Of queries."""
        return self.width // self.head

    @property
    def kv_heads(self) -> int:
        """Of keys and values."""
        return self.heads // self.group

    @property
    def between(self) -> int:
        """Width within the feed-forward layer, a multiple of 16."""
        return 16 * math.ceil(round(self.inner * self.width, 6) / 16)

    @property
    def products(self) -> float:
        """Multiplications with addition of a step."""
        keys = self.kv_heads * self.head
        block = 2 * self.width * (self.width + keys) + 3 * self.between * self.width
        weights = self.layers * block + self.vocabulary * self.width
        adapters = self.layers * RANK * (3 * self.width + keys)
        attention = self.layers * 2 * self.width * self.length / 2
        return self.length * self.rows * (2 * weights + 3 * adapters + 3 * attention)


SIZES = {
    "S1": Size(2, 64, 64, 8),
    "S2": Size(4, 128, 128, 8),
    "S3": Size(4, 256, 128, 8),
    "S4": Size(6, 384, 256, 4),
    "S5": Size(8, 512, 256, 4),
    "S1-32000": Size(2, 64, 64, 8, vocabulary=32000),
    "S3-32000": Size(4, 256, 128, 8, vocabulary=32000),
    "SmolLM2-135M": Size(30, 576, 256, 4, vocabulary=49152, inner=1536 / 576, head=64, group=3),
}


@click.command()
@click.option("--sizes", default=",".join(SIZES), show_default=True)
@click.option("--rounds", default=9, show_default=True, help="At least.")
@click.option("--minutes", default=1.0, show_default=True, help="For each size, of more rounds.")
@click.option(
    "--uneven", is_flag=True, help="With dropout, rows of unequal lengths, and two heads of queries to one of keys."
)
@click.option("--against", type=click.Choice(("peft", "eager")), default="peft", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False))
def main(sizes: str, rounds: int, minutes: float, uneven: bool, against: str, out: Path | None) -> None:
    """Time, print and write."""
    from refpeft_cpu import threads

    rows = []
    rate = product_rate()
    click.echo(f"np.matmul: {2 * rate / 1e9:.0f} GFLOP/s on {threads.count()} threads")
    for name in sizes.split(","):
        size = SIZES[name]
        size = size._replace(group=max(size.group, 2)) if uneven else size
        with tempfile.TemporaryDirectory() as folder, sides(size, uneven, against, Path(folder)) as (ours, theirs):
            once = [min(seconds(side.step) for _ in range(3)) for side in (ours, theirs)]
            steps = math.ceil(ROUND / max(once))
            count = max(rounds, min(MOST, int(60 * minutes / (2 * steps * sum(once) + 2 * REST))))
            row: dict[str, Any] = {"size": name, "rounds": count, "steps": steps, "limit": size.products / rate}
            found = alternating(partial(ours.step, steps), partial(theirs.step, steps), count, REST)
            row |= {side: [t / steps for t in found[side]] for side in ("ours", "theirs")} | {"ratio": found["ratio"]}
            row |= {"resident": {"ours": ours.resident(), "theirs": theirs.resident()}}
        rows.append(row)
        low, median, high = row["ratio"]
        click.echo(
            f"{name:12} {1e3 * row['ours'][1]:8.1f} ms   {against} {1e3 * row['theirs'][1]:8.1f} ms   "
            f"times ours {median:.2f} ({low:.2f} to {high:.2f})   limit {1e3 * row['limit']:.1f} ms   "
            f"resident {row['resident']['ours'] / 1e6:.0f} and {row['resident']['theirs'] / 1e6:.0f} MB"
        )
    if out:
        from importlib.metadata import version

        from refpeft.files import atomic_write

        versions = {name: version(name) for name in ("numpy", "torch", "transformers", "peft")}
        content = about() | {"threads": threads.count(), "uneven": uneven, "against": against}
        atomic_write(out, (json.dumps(content | {"versions": versions, "rows": rows}, indent=1) + "\n").encode())


class Side(NamedTuple):
    """A process that makes steps whenever asked."""

    pipe: Connection

    def step(self, count: int = 1) -> float:
        """The loss of the last of them."""
        self.pipe.send(count)
        return self.pipe.recv()

    def resident(self) -> int:
        """Bytes that it held at most, its libraries among them."""
        self.pipe.send("resident")
        return self.pipe.recv()


@contextmanager
def sides(size: Size, uneven: bool, against: str, folder: Path) -> Iterator[tuple[Side, Side]]:
    """refpeft and the peer in processes of their own, where neither has the other's threads and memory."""
    context, pipes = multiprocessing.get_context("spawn"), []
    random = np.random.default_rng(0)
    ids = random.integers(0, size.vocabulary, (size.rows, size.length + 1))
    lengths = np.linspace(size.length // 2, size.length, size.rows).astype(int)[:, None] if uneven else size.length
    mask = np.arange(size.length) < lengths if uneven else None
    for side, more in ((peer, (against,)), (own, ())):
        mine, its = context.Pipe()
        pipes.append(mine)
        context.Process(target=side, args=(size, ids, mask, folder, its, *more), daemon=True).start()
        said = mine.recv()
    theirs, ours = pipes
    theirs.send(said)
    first, second = ours.recv(), theirs.recv()
    if abs(first - second) > 1e-4 * abs(first):
        raise click.UsageError(f"the losses {first} and {second} of {size} differ: there is nothing to time.")
    yield Side(ours), Side(theirs)
    for pipe in pipes:
        pipe.send("end")


def answer(pipe: Connection, step: Callable[[], float]) -> None:
    """Do what is asked."""
    unit = 1024 if sys.platform == "linux" else 1
    while (asked := pipe.recv()) != "end":
        if asked == "resident":
            pipe.send(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        else:
            pipe.send([step() for _ in range(asked)][-1])


def own(size: Size, ids, mask, folder: Path, pipe: Connection) -> None:
    """Load the model, say which adapters it starts with, give the loss, and make steps."""
    from refpeft.methods import LoRA
    from refpeft.models import load
    from refpeft.models.dropout import Dropout
    from refpeft.training import PagedAdamW

    model = load(folder, backend="cpu")
    model.attach("layers.*.attn.q,layers.*.attn.v", LoRA(rank=RANK, alpha=RANK * SCALING), np.random.default_rng(0))
    state = 8 * sum(p.size for p in model.trained.values())
    optimizer = PagedAdamW(model.trained, lr=LR, budget=state + 2**21, page_size=2**20, backend="cpu", decay=0.0)
    pipe.send({name: array.copy() for name, array in model.trained.items()})
    pipe.send(model.score(ids, mask))

    def step() -> float:
        dropout = Dropout(DROPOUT, 0, optimizer.steps) if mask is not None else None
        loss, gradients = model.loss(ids, mask, dropout=dropout)
        optimizer.step(gradients)
        return loss

    answer(pipe, step)


def peer(size: Size, ids, mask, folder: Path, pipe: Connection, against: str) -> None:
    """Save a random model, take adapters, give the loss, and make steps."""
    import torch
    import transformers

    from refpeft_cpu import threads

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads.count())
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.between,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        tie_word_embeddings=False,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(config)
    base.save_pretrained(folder)
    pipe.send("saved")
    model, logits = PEERS[against](base, pipe.recv(), 0.0 if mask is None else DROPOUT)
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=against == "eager")
    tokens, seen = torch.from_numpy(ids), None if mask is None else torch.from_numpy(mask)
    target = tokens[:, 1:] if seen is None else tokens[:, 1:].where(seen, -100)

    def loss():
        found = logits(tokens[:, :-1], seen)
        return torch.nn.functional.cross_entropy(found.reshape(-1, size.vocabulary), target.reshape(-1))

    def step() -> float:
        adamw.zero_grad()
        found = loss()
        found.backward()
        adamw.step()
        return found.item()

    model.eval()
    with torch.no_grad():
        pipe.send(loss().item())
    model.train()
    answer(pipe, step)


def with_peft(base, arrays, dropout: float):
    """transformers' model with peft's layers, and its logits."""
    import peft
    import torch

    at = ["q_proj", "v_proj"]
    lora = peft.LoraConfig(r=RANK, lora_alpha=int(RANK * SCALING), target_modules=at, lora_dropout=dropout)
    model = peft.get_peft_model(base, lora)
    for i, layer in enumerate(model.base_model.model.model.layers):
        for name in "qv":
            module = getattr(layer.self_attn, f"{name}_proj")
            module.lora_A["default"].weight.data = torch.from_numpy(arrays[f"layers.{i}.attn.{name}.a"])
    return model, lambda ids, seen: model(input_ids=ids, attention_mask=seen if seen is None else seen.long()).logits


def by_hand(base, arrays, dropout: float):
    """The same in eager torch, and its logits."""
    from eager import Eager

    model = Eager(base, arrays, SCALING, dropout)
    return model, model


PEERS = {"peft": with_peft, "eager": by_hand}


def product_rate() -> float:
    """Multiplications with addition a second, the best of several products of 1536 by 1536."""
    a, b = np.random.default_rng(0).normal(size=(2, 1536, 1536)).astype(np.float32)
    return 1536**3 / min(seconds(lambda: a @ b) for _ in range(8))


if __name__ == "__main__":
    main()
