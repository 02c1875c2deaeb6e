"""What papers say of memory, computed: each claim with its arithmetic, and whether it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from refpeft.memory.account import Run, account, constants
from refpeft.memory.activations import Batch, block, total
from refpeft.memory.decoder import Decoder
from refpeft.memory.models import PRESETS
from refpeft.memory.trained import by_method, configured, full

LORA, QLORA, RECOMPUTATION = "arXiv:2106.09685", "arXiv:2305.14314", "arXiv:2205.05198"


@dataclass(frozen=True)
class Claim:
    """A statement, its paper, the arithmetic behind it, and whether it holds."""

    statement: str
    paper: str
    arithmetic: str
    holds: bool


def claims() -> list[Claim]:
    """All of them, in the order of their papers."""
    return [*_of_lora(PRESETS["gpt3-175b"]), *_of_qlora(PRESETS["llama-65b"]), _of_recomputation(PRESETS["gpt3-175b"])]


def bits(blocksize: int = 64, *, double: bool) -> float:
    """Bits a parameter of NF4: 4 + 32/64, or with double quantisation 4 + 8/64 + 32/(64 256); the mean's bits vanish."""
    elements = blocksize * 256 * 10**6
    return 4 + 8 * (constants(elements, blocksize, double=double) - (4 if double else 0)) / elements


def lora_65b() -> int:
    """Bytes for LLaMA-65B as QLoRA trains it: r = 64 on all matrices and paged AdamW, everything else in bf16, 512 tokens."""
    decoder = PRESETS["llama-65b"]
    trained = by_method(decoder, "qlora", configured("qlora", 64, {}, decoder), "all-linear")
    run = Run(adapter_dtype="bf16", quantised="nf4-double", optimizer="paged-adamw", sequence=512)
    return sum(part.bytes for part in account(decoder, trained, run))


def _training_bytes(decoder: Decoder, run: Run, leave_out: tuple[str, ...] = ()) -> int:
    """Bytes of weights, their copy, gradients and optimizer state."""
    counted = {"weights", "master weights", "gradients", "optimizer state"} - set(leave_out)
    return sum(part.bytes for part in account(decoder, full(decoder), run) if part.name in counted)


def _of_lora(decoder: Decoder):
    n = decoder.parameters()
    mixed = _training_bytes(decoder, Run(dtype="bf16", optimizer="adam"))
    wide = _training_bytes(decoder, Run(dtype="fp32", optimizer="adam"))
    held = _training_bytes(decoder, Run(dtype="fp32", optimizer="adam"), leave_out=("gradients",))
    rank4 = by_method(decoder, "lora", configured("lora", 4, {}, decoder), "q,v").parameters
    yield Claim(
        "Full fine-tuning of GPT-3 175B with Adam needs over 1 TB",
        LORA,
        f"mixed precision (2 + 4 + 2 + 8) x {n:,} = {mixed / 1e12:.2f} TB; fp32 (4 + 4 + 8) x {n:,} = {wide / 1e12:.2f} TB, "
        f"without gradients (4 + 8) x {n:,} = {held / 1e12:.2f} TB",
        (mixed, wide, held) == (16 * n, 16 * n, 12 * n) and held > 1e12,
    )
    yield Claim(
        "A copy of its weights takes 700 GB in fp32, and 350 GB in 16 bits",
        LORA,
        f"4 x {n:,} = {4 * n / 1e9:.1f} GB; 2 x {n:,} = {2 * n / 1e9:.1f} GB",
        round(4 * n / 1e9, -1) == 700 and round(2 * n / 1e9, -1) == 350,
    )
    yield Claim(
        "LoRA with r = 4 on Wq and Wv trains 18,874,368 of its parameters, 0.0108 %",
        LORA,
        f"96 x 2 x 4 x (12,288 + 12,288) = {rank4:,}; / {n:,} = {100 * rank4 / n:.4f} %",
        rank4 == 18_874_368 and f"{100 * rank4 / n:.4f}" == "0.0108",
    )


def _of_qlora(decoder: Decoder):
    n, single, double, bytes = decoder.parameters(), bits(double=False), bits(double=True), lora_65b()
    yield Claim(
        "NF4 in blocks of 64 takes 4.5 bits a parameter, 4.127 with double quantisation",
        QLORA,
        f"4 + 32/64 = {single:.1f}; 4 + 8/64 + 32/(64 x 256) = {double:.6f}",
        single == 4.5 and f"{double:.3f}" == "4.127",
    )
    yield Claim(
        "Regular 16-bit fine-tuning of LLaMA 65B needs more than 780 GB",
        QLORA,
        f"(2 + 2 + 8) x {n:,} = {12 * n / 1e9:.1f} GB",
        _training_bytes(decoder, Run(master=False)) == 12 * n > 780e9,
    )
    yield Claim(
        "LLaMA 65B in NF4 with LoRA on all its linear layers is trained on one GPU of 48 GB",
        QLORA,
        f"r = 64, one sequence of 512 tokens, adapter in bf16: {bytes / 1e9:.2f} GB, see "
        "'refpeft memory llama-65b --method qlora --rank 64 --adapter-dtype bf16 --optimizer paged-adamw'",
        bytes < 48e9,
    )


def _of_recomputation(decoder: Decoder) -> Claim:
    s, b, a, h = 2048, 1, decoder.heads, decoder.width
    dropped = replace(decoder, dropout=True)
    kept = [t for t in block(dropped, full(dropped), Batch(b, s, 2)) if not t.name.startswith("statistics")]
    return Claim(
        "A block keeps s b h (34 + 5 a s / h) bytes of activations in 16 bits",
        RECOMPUTATION,
        f"GPT-3 with dropout, s = {s}, b = {b}: {s * b * h:,} x (34 + {5 * a * s // h}) = {total(kept):,}",
        total(kept) * h == s * b * h * (34 * h + 5 * a * s),
    )
