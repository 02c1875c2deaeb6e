"""The CuPy backend's kernels against bitsandbytes and torch, and against what the card can do, in one run.

    python benchmarks/gpu.py --out benchmarks/results/gpu-h200.json

It certifies what is timed, at the quick profile, or takes a ``--certificate`` that there is, and refuses to time what that does
not say is right. Each row alternates the two, several rounds of several calls between CUDA events, over buffers that together
exceed the card's cache; medians with an interval that holds the median with 95 %.
``limit`` is the bytes that must be moved at the rate of a copy, or the products at the rate of a matrix product in bfloat16,
whichever takes longer, both measured in the same run.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import ml_dtypes
import numpy as np

from refpeft import plugins
from refpeft.files import atomic_write
from refpeft.intervals import median

try:
    import cupy
except ModuleNotFoundError:
    cupy = None

SIDE, RANK, BLOCKSIZE, SCALING, COPIES = 8192, 16, 64, 2.0, 4
PACKED = SIDE * SIDE / 2 + 4 * SIDE * SIDE / BLOCKSIZE
"""Bytes of a matrix in 4 bits, with its maxima."""

VARIANTS = {"nf4": "paper", "fp4": "sign-magnitude"}
"""The formats of 4 bits, and how each is read."""

FORMATS = tuple(f"{kind}.{way}" for kind in VARIANTS for way in ("quantize", "dequantize"))
OPERATIONS = (*FORMATS, "qlora.linear", "lora.linear", "lora.merge", "adam8bit.step")
BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass
class Row:
    """One comparison: both do the same work on arrays number ``k``.

    Attributes
    ----------
    name : str
    ours, theirs : callable
    peer : str
        What ``theirs`` is.
    bytes, products : float
        What must be moved at least, and how many multiplications with addition there are.
    """

    name: str
    ours: Callable[[int], object]
    theirs: Callable[[int], object]
    peer: str
    bytes: float
    products: float = 0.0


@click.command()
@click.option("--certificate", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="One of before.")
@click.option("--rounds", default=15, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(certificate: Path | None, rounds: int, out: Path) -> None:
    """Certify, time, print and write."""
    if reason := plugins.backend("cupy").unavailable():
        raise click.UsageError(reason)
    if not out.absolute().parent.is_dir():
        raise click.UsageError(
            f"--out {out} cannot be written because the folder {out.absolute().parent} does not exist."
        )
    import torch

    with tempfile.TemporaryDirectory() as folder:
        require_passed(certificate or certified(Path(folder)))
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    copy, product = copy_rate(rounds), product_rate(rounds, torch)
    click.echo(f"{name}: copies {copy / 1e12:.2f} TB/s, bfloat16 products {2 * product / 1e12:.0f} TFLOP/s")
    rows = []
    for row in comparisons(torch):
        ours, theirs = alternating(row.ours, row.theirs, rounds)
        limit = max(row.bytes / copy, row.products / product)
        ratio = median([t / o for o, t in zip(ours, theirs)])
        rows.append(
            {"name": row.name, "peer": row.peer, "ours": median(ours), "theirs": median(theirs), "ratio": ratio}
            | {"limit": limit}
        )
        click.echo(
            f"{row.name:34} {1e6 * rows[-1]['ours'][1]:9.1f} us   {row.peer:28} {1e6 * rows[-1]['theirs'][1]:9.1f} us   "
            f"times ours {ratio[1]:5.2f} ({ratio[0]:.2f} to {ratio[2]:.2f})   limit {1e6 * limit:8.1f} us"
        )
    versions = {"cupy": cupy.__version__, "torch": torch.__version__, "bitsandbytes": _bitsandbytes_version()}
    content = {"card": name, "versions": versions, "copy": copy, "products": product, "rows": rows}
    atomic_write(out, (json.dumps(content, indent=1) + "\n").encode())


def certified(folder: Path) -> Path:
    """The certificate of what is timed, made now; what it says is read by `require_passed`."""
    asked = ["--operations", ",".join(OPERATIONS), "--profile", "quick", "--out", str(folder)]
    subprocess.run([sys.executable, "-m", "refpeft", "certify", "cupy", *asked])
    if not (made := folder / "certificate.json").is_file():
        raise click.UsageError("cupy could not be certified here, as is said above: there is nothing to time.")
    return made


def require_passed(path: Path) -> None:
    """Raise UsageError unless the certificate is CuPy's on a GPU and every operation that is timed passed."""
    content = json.loads(path.read_text("utf-8"))
    device, passed = content["subject"]["device"], set(content["passed_operations"])
    if content["subject"]["backend"] != "cupy" or not device.startswith("cuda:"):
        raise click.UsageError(f"{path} certifies {content['subject']['backend']} on {device}, not cupy on a GPU.")
    if failed := [name for name in OPERATIONS if name not in passed]:
        raise click.UsageError(f"{path} does not certify {', '.join(failed)}: there is nothing to time.")


def comparisons(torch) -> Iterator[Row]:
    """Every row; bitsandbytes' where it is installed."""
    backend = plugins.backend("cupy")
    run = {name: backend.implementation(name).forward for name in OPERATIONS}
    n, rng = SIDE * SIDE, np.random.default_rng(0)
    host = [rng.normal(size=(SIDE, SIDE)).astype(BF16) for _ in range(2)]
    weight = [cupy.asarray(host[k % 2]) for k in range(COPIES)]
    a, b = (cupy.asarray(rng.normal(size=s).astype(BF16)) for s in ((RANK, SIDE), (SIDE, RANK)))
    their_weight, ta, tb = [_torch(torch, w) for w in weight], _torch(torch, a), _torch(torch, b)

    def merge(k):
        return their_weight[k] + SCALING * (tb @ ta)

    yield Row(
        "lora.merge",
        lambda k: run["lora.merge"](weight[k], a, b, scaling=SCALING),
        merge,
        "torch",
        4 * n,
        n * RANK,
    )
    xs = {rows: cupy.asarray(rng.normal(size=(rows, SIDE)).astype(BF16)) for rows in (1, 4, 16, 2048)}
    for rows, x in xs.items():
        tx = _torch(torch, x)
        yield Row(
            f"lora.linear, {rows} rows",
            lambda k, x=x: run["lora.linear"](x, weight[k], a, b, scaling=SCALING, keep=1.0),
            lambda k, tx=tx: tx @ their_weight[k].T + SCALING * (tx @ ta.T) @ tb.T,
            "torch",
            2 * n,
            rows * n,
        )
    if not _bitsandbytes_version():
        click.echo("bitsandbytes is not installed: its rows are left out.", err=True)
        return
    yield from adam8bit(torch, run)
    for kind in VARIANTS:
        quantised, theirs = both_quantised(run, kind, weight, their_weight)
        yield from four_bit(run, kind, weight, their_weight, quantised, theirs)
        if kind == "nf4":
            yield from qlora(torch, run, xs, (a, b), quantised, theirs)


def both_quantised(run, kind, weight, their_weight):
    """The matrices in 4 bits, ours and bitsandbytes', compared."""
    from bitsandbytes.functional import quantize_4bit

    ours = [run[f"{kind}.quantize"](w.reshape(-1), blocksize=BLOCKSIZE, variant=VARIANTS[kind])[0] for w in weight]
    theirs = [quantize_4bit(w, blocksize=BLOCKSIZE, quant_type=kind) for w in their_weight]
    codes = sum(int((ours[k][0] != _cupy(theirs[k][0].view(-1))).sum()) for k in range(2))
    click.echo(f"of {SIDE * SIDE} bytes of {kind} codes in two matrices, {codes} differ from bitsandbytes'")
    return ours, theirs


def four_bit(run, kind, weight, their_weight, quantised, theirs) -> Iterator[Row]:
    """A format of 4 bits, there and back."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    n, options = SIDE * SIDE, {"n": SIDE * SIDE, "blocksize": BLOCKSIZE, "dtype": "bfloat16"}
    yield Row(
        f"{kind}.quantize",
        lambda k: run[f"{kind}.quantize"](weight[k].reshape(-1), blocksize=BLOCKSIZE, variant=VARIANTS[kind]),
        lambda k: quantize_4bit(their_weight[k], blocksize=BLOCKSIZE, quant_type=kind),
        "bitsandbytes.quantize_4bit",
        2 * n + PACKED,
    )
    yield Row(
        f"{kind}.dequantize",
        lambda k: run[f"{kind}.dequantize"](*quantised[k], **options),
        lambda k: dequantize_4bit(*theirs[k]),
        "bitsandbytes.dequantize_4bit",
        2 * n + PACKED,
    )


def adam8bit(torch, run) -> Iterator[Row]:
    """A step of Adam on moments of 8 bits; theirs writes over what it reads."""
    from bitsandbytes.functional import create_dynamic_map, optimizer_update_8bit_blockwise

    n, rng = SIDE * SIDE, np.random.default_rng(1)
    host = rng.normal(size=n).astype(np.float32)
    given = [
        [cupy.asarray(host), cupy.asarray(host), *(cupy.full(n, code, "uint8") for code in (127, 0))]
        + [cupy.zeros(n // 256, "float32") for _ in range(2)]
        for _ in range(COPIES)
    ]
    maps = [create_dynamic_map(signed=signed).cuda() for signed in (True, False)]
    numbers = {"lr": 1e-4, "step": 1}

    def theirs(k):
        p, grad, m, v, *maxima = (torch.from_dlpack(array) for array in given[k])
        betas = {"beta1": 0.9, "beta2": 0.999, "beta3": 0.0, "alpha": 0.0}
        moments = {"qmap1": maps[0], "qmap2": maps[1], "absmax1": maxima[0], "absmax2": maxima[1]}
        optimizer_update_8bit_blockwise("adam", grad, p, m, v, eps=1e-8, **betas, **numbers, **moments)

    yield Row(
        "adam8bit.step",
        lambda k: run["adam8bit.step"](*given[k], **numbers),
        theirs,
        "bitsandbytes' block-wise update",
        16 * n + 16 * n / 256,
    )


def qlora(torch, run, xs, factors, quantised, theirs) -> Iterator[Row]:
    """QLoRA's layer over matrices in NF4."""
    import bitsandbytes

    (a, b), (ta, tb) = factors, (_torch(torch, factor) for factor in factors)
    for rows, x in xs.items():
        tx = _torch(torch, x)
        yield Row(
            f"qlora.linear, {rows} rows",
            lambda k, x=x: run["qlora.linear"](
                x, *quantised[k], a, b, scaling=SCALING, blocksize=BLOCKSIZE, dtype="bfloat16"
            ),
            lambda k, tx=tx: (
                bitsandbytes.matmul_4bit(tx, theirs[k][0].t(), quant_state=theirs[k][1]) + SCALING * (tx @ ta.T) @ tb.T
            ),
            "bitsandbytes.matmul_4bit, torch",
            PACKED,
            rows * SIDE * SIDE,
        )


def copy_rate(rounds: int) -> float:
    """Bytes read and written a second by copies on the device."""
    source = cupy.ones(1 << 30, cupy.uint8)
    target = cupy.empty_like(source)
    return (
        2 * source.nbytes / statistics.median(seconds(lambda k: cupy.copyto(target, source), 4) for _ in range(rounds))
    )


def product_rate(rounds: int, torch) -> float:
    """Multiplications with addition a second in a matrix product in bfloat16."""
    left, right = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.cuda.synchronize()
    return SIDE**3 / statistics.median(seconds(lambda k: left @ right, 4) for _ in range(rounds))


def alternating(ours: Callable, theirs: Callable, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds a call of each, round by round, after one round that does not count."""
    times = [[seconds(f, 2 * COPIES) for f in (ours, theirs)] for _ in range(rounds + 1)][1:]
    return [t[0] for t in times], [t[1] for t in times]


def seconds(function: Callable, calls: int) -> float:
    """Seconds a call on the default stream, which CuPy and torch share."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for k in itertools.islice(itertools.cycle(range(COPIES)), calls):
        function(k)
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1e3 / calls


def _torch(torch, array):
    """The same memory as torch's tensor; CuPy's bfloat16 travels as integers."""
    return torch.from_dlpack(array.view(cupy.int16)).view(torch.bfloat16)


def _cupy(tensor):
    return cupy.from_dlpack(tensor)


def _bitsandbytes_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("bitsandbytes")
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
