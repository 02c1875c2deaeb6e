"""Loss curves of LoRA and QLoRA on a real model: refpeft's beside those of transformers, peft and bitsandbytes.

    python benchmarks/curves.py SmolLM2-135M-Instruct.Q4_1.gguf --data book.txt --out benchmarks/results/curves.json

One start, one order of the text, AdamW in each library's own. What rounding alone makes of a curve is seen between refpeft's
backends ``cpu`` and ``torch``, which compute in float32 too: the distance to the others must be of that size. With QLoRA every
library has the codes of one 4-bit checkpoint, as `refpeft convert` writes it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from about import about

RANK, ALPHA, LR = 8, 16.0, 1e-3


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--steps", default=50, show_default=True)
@click.option("--rows", default=2, show_default=True)
@click.option("--sequence", default=64, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False))
def main(model: Path, data: Path, steps: int, rows: int, sequence: int, out: Path | None) -> None:
    """Train, compare and write."""
    from refpeft.models.tokens import tokenizer
    from refpeft.training import text

    warnings.simplefilter("ignore")
    begun, digest = about(), hashlib.sha256(data.read_bytes()).hexdigest()
    ids = text.rows(data, tokenizer(model), sequence + 1)
    batches = [text.batch(ids, rows, 0, step) for step in range(steps)]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, base in (("lora", model), ("qlora", in_four_bits(model, Path(folder) / "nf4"))):
            curves = {backend: [*ours(base, backend, batches)] for backend in ("cpu", "torch")}
            curves["peft"] = [*theirs(base, batches)]
            rounding, distance = (largest(curves["cpu"], curves[other]) for other in ("torch", "peft"))
            found.append({"method": name, "losses": curves, "backends": rounding, "peft": distance})
            click.echo(
                f"{name}: {curves['cpu'][0]:.6f} to {curves['cpu'][-1]:.6f} in {steps} steps; at most {rounding:.2g} between "
                f"backends, {distance:.2g} to peft"
            )
    if out:
        from importlib.metadata import version

        from refpeft.files import atomic_write

        versions = {name: version(name) for name in ("numpy", "torch", "transformers", "peft", "bitsandbytes")}
        what = begun | {
            "model": model.name,
            "data": data.name,
            "sha256": digest,
            "rows": rows,
            "sequence": sequence,
            "rank": RANK,
            "lr": LR,
        }
        atomic_write(out, (json.dumps(what | {"versions": versions, "curves": found}, indent=1) + "\n").encode())


def in_four_bits(model: Path, folder: Path) -> Path:
    """The model in NF4, doubly quantised."""
    from click.testing import CliRunner

    from refpeft.cli import main as refpeft

    result = CliRunner().invoke(refpeft, ["convert", str(model), "--double-quant", "--out", str(folder)])
    if result.exit_code:
        raise click.ClickException(result.output)
    return folder


def begun(model: Path, backend: str):
    """A decoder with LoRA on q and v, at the same start whatever the backend."""
    from refpeft.methods import LoRA
    from refpeft.models import load

    decoder = load(model, backend=backend)
    decoder.attach("layers.*.attn.q,layers.*.attn.v", LoRA(rank=RANK, alpha=ALPHA), np.random.default_rng(0))
    return decoder


def ours(model: Path, backend: str, batches: list[np.ndarray]) -> Iterator[float]:
    """Losses of refpeft."""
    from refpeft.training import PagedAdamW

    decoder = begun(model, backend)
    with PagedAdamW(decoder.trained, lr=LR, budget=2**26, backend=backend, decay=0.0) as optimizer:
        for ids in batches:
            loss, gradients = decoder.loss(ids)
            optimizer.step(gradients)
            yield loss


def theirs(model: Path, batches: list[np.ndarray]) -> Iterator[float]:
    """Losses of peft, from refpeft's start."""
    import peft
    import torch
    import transformers

    place = {"pretrained_model_name_or_path": model}
    if model.is_file():
        place = {"pretrained_model_name_or_path": model.parent, "gguf_file": model.name}
    decoder = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, device_map="cpu")
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(decoder, settings).train()
    found, start = dict(adapted.named_parameters()), begun(model, "cpu").trained
    for name, array in start.items():
        _, i, _, matrix, factor = name.split(".")
        module = f"base_model.model.model.layers.{i}.self_attn.{matrix}_proj.lora_{factor.upper()}.default.weight"
        found[module].data.copy_(torch.from_numpy(array))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    for ids in batches:
        tokens = torch.from_numpy(ids)
        loss = adapted(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def largest(first: list[float], second: list[float]) -> float:
    """The largest distance of two curves, over the loss."""
    return max(abs(a - b) / abs(a) for a, b in zip(first, second, strict=True))


if __name__ == "__main__":
    main()
