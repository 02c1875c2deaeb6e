"""One training step of QLoRA on a model of LLaMA-65B's shape, on one device of 48 GB (after arXiv:2305.14314).

    python examples/llama65b_layerwise.py --layers 2     # to see it run
    python examples/llama65b_layerwise.py                # the whole

It needs CuPy and a GPU; on an H200 the whole took a minute and a half, most of it to draw the codes, and 40.5 GB where 39.6 were
planned. Its gradients are those of the ordinary model, which a test shows at a tiny size.

The matrices of the blocks are in NF4, their maxima quantised too, and go to the device one by one. They are drawn as codes: what
a step takes of memory does not depend on what they say. Forwards, only the input of each block is kept; backwards, each block
is computed again from it, and its matrices are decoded one at a time. LoRA stands at every matrix, in float32 as all that is
computed, and of AdamW's state a budget of 16 MiB is on the device, the rest in pinned pages of the host.

At the end it prints the peak of what was taken of the device beside what was planned, which is

    refpeft memory llama-65b --method qlora --rank 16 --dtype fp32 --optimizer paged-adamw --gpu 48GB
"""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Mapping
from dataclasses import replace

import click
import numpy as np

from refpeft import plugins
from refpeft.errors import RefpeftError
from refpeft.formats.four_bit import Nested, Quantised
from refpeft.memory.account import Run, account
from refpeft.memory.decoder import Decoder, Matrix
from refpeft.memory.models import PRESETS
from refpeft.memory.trained import by_method
from refpeft.methods import LoRA
from refpeft.models import LanguageModel
from refpeft.models.places import place
from refpeft.training import PagedAdamW

BUDGET, PAGE, GPU = 2**24, 2**20, 48 * 10**9
"""Bytes of AdamW's state on the device, of a page of it, and of the device that it should fit on."""


class Weights(Mapping):
    """Random weights of a decoder, each drawn when it is asked for, so that the host never has more than one."""

    def __init__(self, shape: Decoder):
        self.shape = shape
        self.matrices = {f"layers.{i}.{place(m.site)}": m for i in range(shape.layers) for m in shape.matrices()}
        norms = [f"layers.{i}.{part}.norm" for i in range(shape.layers) for part in ("attn", "mlp")]
        self.names = ["embedding", *norms, *self.matrices, "norm", "head"]

    def __getitem__(self, name: str):
        random, width = np.random.default_rng(zlib.crc32(name.encode())), self.shape.width
        if name in self.matrices:
            return in_four_bits(random, self.matrices[name])
        if name.endswith("norm"):
            return np.ones(width, np.float32)
        return random.standard_normal((self.shape.vocabulary, width), np.float32) * np.float32(width**-0.5)

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


def in_four_bits(random: np.random.Generator, matrix: Matrix) -> Quantised:
    """Codes of NF4, doubly quantised: the maxima of blocks of 64 lie around those of numbers of variance 1 / i."""
    maxima, typical = -(-matrix.elements // 64), np.float32(2.4 * matrix.i**-0.5)
    packed, codes = (np.frombuffer(random.bytes(n), np.uint8) for n in (-(-matrix.elements // 2), maxima))
    nested = Nested(np.full(-(-maxima // 256), typical / 2, np.float32), typical)
    return Quantised("nf4", packed, codes, (matrix.o, matrix.i), 64, "float32", nested)


def begin(shape: Decoder, rank: int, backend, device: str) -> LanguageModel:
    """The model on the device, LoRA at every matrix; A is drawn without a look at the matrix."""
    weights, lora, random = Weights(shape), LoRA(rank=rank, alpha=rank), np.random.default_rng(0)
    model = LanguageModel(shape, weights, eps=1e-6, backend=backend, device=device)
    sizes = {site: np.broadcast_to(np.float32(0), (m.o, m.i)) for site, m in weights.matrices.items()}
    model.attach(",".join(sizes), lora, arrays={site: lora.init(random, size) for site, size in sizes.items()})
    return model


def step(model: LanguageModel, tokens: int, backend, device: str) -> float:
    """A training step on random tokens: its loss."""
    optimizer = PagedAdamW(model.trained, lr=1e-4, budget=BUDGET, page_size=PAGE, backend=backend, device=device)
    ids = np.random.default_rng(1).integers(0, model.shape.vocabulary, (1, tokens + 1))
    loss, gradients = model.loss(ids, checkpointing=True)
    optimizer.step(gradients)
    return loss


def planned(shape: Decoder, rank: int, tokens: int) -> int:
    """Bytes on the device that `refpeft memory` counts: all but the state, of which the budget is there."""
    run = Run(dtype="fp32", quantised="nf4-double", optimizer="paged-adamw", sequence=tokens)
    parts = account(shape, by_method(shape, "qlora", LoRA(rank=rank), "all-linear"), run)
    state = sum(part.bytes for part in parts if part.paged)
    return sum(part.bytes for part in parts) - state + min(BUDGET, state)


def peak(backend) -> int:
    """Bytes held when most were: what CuPy's pool took, which gives nothing back, and the budget beside it; or NumPy's."""
    if backend.name != "cupy":
        return tracemalloc.get_traced_memory()[1]
    import cupy

    return cupy.get_default_memory_pool().total_bytes() + BUDGET


@click.command()
@click.option("--layers", default=80, show_default=True)
@click.option("--rank", default=16, show_default=True)
@click.option("--tokens", default=512, show_default=True)
@click.option("--backend", default="cupy", show_default=True, help="One without a GPU, as cpu, takes its time.")
def main(layers: int, rank: int, tokens: int, backend: str) -> None:
    """Build, step and print."""
    try:
        report(replace(PRESETS["llama-65b"], layers=layers), rank, tokens, plugins.backend(backend))
    except RefpeftError as error:
        raise click.UsageError(str(error)) from error


def report(shape: Decoder, rank: int, tokens: int, backend) -> None:
    """Where the backend cannot run, the reason instead."""
    if reason := backend.unavailable():
        raise click.UsageError(reason)
    device = backend.devices()[0]
    tracemalloc.start()
    model = begin(shape, rank, backend, device)
    trained = sum(int(np.prod(array.shape)) for array in model.trained.values())
    click.echo(f"{shape.name}, {shape.layers} layers: {shape.parameters():,} parameters, {trained:,} trained")
    click.echo(f"loss     {step(model, tokens, backend, device):.4f}")
    for name, size in (("peak", peak(backend)), ("planned", planned(shape, rank, tokens)), ("device", GPU)):
        click.echo(f"{name:8} {size / 1e9:.3f} GB")
    tracemalloc.stop()


if __name__ == "__main__":
    main()
