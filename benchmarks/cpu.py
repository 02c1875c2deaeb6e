"""The CPU backend's NF4 against bitsandbytes', and against a copy of the matrix, in one run.

    python benchmarks/cpu.py --out benchmarks/results/cpu.json

A 4096 x 4096 float32 matrix in blocks of 64, with one and with two threads. Each row alternates the two, several rounds; medians
with an interval that holds the median with 95 %. The memory of a result is that of the one before, which nobody holds any more,
as in a run that decodes matrix after matrix; bitsandbytes' comes from torch. It first asks for equal codes, maxima and values, to
the last bit.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from refpeft import plugins
from refpeft.files import atomic_write
from refpeft.intervals import alternating, median, seconds

SIDE, BLOCKSIZE = 4096, 64
THREADS = (1, 2)


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False))
def main(rounds: int, out: Path | None) -> None:
    """Time, print and write."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    backend = plugins.backend("cpu")
    quantize, dequantize = (backend.implementation(f"nf4.{name}").forward for name in ("quantize", "dequantize"))
    weight = np.random.default_rng(0).normal(size=SIDE * SIDE).astype(np.float32)
    theirs, copied = torch.from_numpy(weight), np.empty_like(weight)
    (packed, absmax), _ = quantize(weight, blocksize=BLOCKSIZE, variant="bitsandbytes-cpu")
    codes, state = quantize_4bit(theirs, blocksize=BLOCKSIZE, quant_type="nf4")
    options = {"n": weight.size, "blocksize": BLOCKSIZE, "dtype": "float32"}
    require_equal("codes", packed, codes.numpy().reshape(-1))
    require_equal("maxima", absmax, state.absmax.numpy())
    require_equal("values", dequantize(packed, absmax, **options)[0][0], dequantize_4bit(codes, state).numpy())
    pairs: dict[str, tuple[Callable, Callable]] = {
        "nf4.quantize": (
            lambda: quantize(weight, blocksize=BLOCKSIZE, variant="paper"),
            lambda: quantize_4bit(theirs, blocksize=BLOCKSIZE, quant_type="nf4"),
        ),
        "nf4.dequantize": (
            lambda: dequantize(packed, absmax, **options),
            lambda: dequantize_4bit(codes, state),
        ),
    }
    rows = []
    for threads in THREADS:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        for name, (ours, peer) in pairs.items():
            rows.append({"name": name, "threads": threads} | alternating(ours, peer, rounds))
            report(rows[-1])
    limit = median([seconds(lambda: np.copyto(copied, weight)) for _ in range(rounds)])
    click.echo(f"copying the matrix takes {1e3 * limit[1]:.1f} ms")
    if out:
        versions = {m.__name__: m.__version__ for m in (np, torch)} | {"bitsandbytes": _bitsandbytes_version()}
        content = {"machine": platform.processor() or platform.machine(), "versions": versions, "rows": rows}
        atomic_write(out, (json.dumps(content | {"copy": limit}, indent=1) + "\n").encode())


def require_equal(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Raise UsageError unless the two are equal, bit for bit."""
    if ours.tobytes() != theirs.tobytes():
        raise click.UsageError(f"the {what} differ from bitsandbytes': there is nothing to time.")


def report(row: dict) -> None:
    """One line."""
    low, median, high = row["ratio"]
    click.echo(
        f"{row['name']:16} {row['threads']} threads {1e3 * row['ours'][1]:8.1f} ms   bitsandbytes "
        f"{1e3 * row['theirs'][1]:8.1f} ms   times ours {median:5.2f} ({low:.2f} to {high:.2f})"
    )


def _bitsandbytes_version() -> str:
    from importlib.metadata import version

    return version("bitsandbytes")


if __name__ == "__main__":
    main()
