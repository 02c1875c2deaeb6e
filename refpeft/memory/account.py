"""The account: everything that lies in memory at the peak of a training step, as parts with their arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from refpeft.errors import AttributeValueError, CapabilityError
from refpeft.memory.activations import Batch, Kept, block, ends, in_flight, total
from refpeft.memory.decoder import Decoder
from refpeft.memory.trained import Trained

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "lion", "adam8bit", "adamw8bit", "paged-adamw", "paged-adamw8bit")
QUANTISED = ("none", "nf4", "nf4-double")


@dataclass(frozen=True)
class Part:
    """One part of the account.

    Attributes
    ----------
    name : str
    bytes : int
    arithmetic : str
    paged : bool
        Whether it may be moved to the host.
    """

    name: str
    bytes: int
    arithmetic: str
    paged: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a model is trained.

    Attributes
    ----------
    dtype : str
        Of dense weights and activations: fp32, bf16 or fp16.
    adapter_dtype : str
        Of what a method adds, and of its gradients. peft's default is fp32.
    quantised : str
        The blocks' matrices: none, nf4, or nf4-double with double quantisation.
    blocksize : int
    optimizer : str
    master : bool
        Whether full fine-tuning in 16 bits trains a float32 copy of the weights: mixed precision.
    batch, sequence : int
    checkpointing : bool
        Whether blocks are computed again in the backward pass, each from its input.
    fused : bool
        Whether attention keeps one logarithm a row in place of probabilities.
    """

    dtype: str = "bf16"
    adapter_dtype: str = "fp32"
    quantised: str = "none"
    blocksize: int = 64
    optimizer: str = "adamw"
    master: bool = True
    batch: int = 1
    sequence: int = 512
    checkpointing: bool = True
    fused: bool = False

    def __post_init__(self):
        for field, choices in (
            ("dtype", BYTES),
            ("adapter_dtype", BYTES),
            ("quantised", QUANTISED),
            ("optimizer", OPTIMIZERS),
        ):
            if getattr(self, field) not in choices:
                raise AttributeValueError(f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}.")
        for field in ("blocksize", "batch", "sequence"):
            if getattr(self, field) < 1:
                raise AttributeValueError(f"{field} must be at least 1, got {getattr(self, field)}.")


def constants(elements: int, blocksize: int = 64, *, double: bool) -> int:
    """Bytes of a matrix's quantisation constants: 4 for each block's maximum; with double quantisation 1, and 4 for each 256
    of these, and 4 for their mean (arXiv:2305.14314, section 3). The tables of codewords are shared.
    """
    blocks = -(-elements // blocksize)
    return blocks + 4 * -(-blocks // 256) + 4 if double else 4 * blocks


def state(optimizer: str, parameters: int) -> int:
    """Bytes of an optimizer's state: 4 for each moment, none of SGD, one of momentum and Lion, two of Adam.

    In 8 bits a moment takes 1, and 4 for the maximum of each 256 (arXiv:2110.02861).
    """
    if optimizer.endswith("8bit"):
        return 2 * (parameters + 4 * -(-parameters // 256))
    return 4 * parameters * {"sgd": 0, "momentum": 1, "lion": 1}.get(optimizer, 2)


def account(decoder: Decoder, trained: Trained, run: Run) -> list[Part]:
    """The parts of memory at the peak of a step, in the order in which they come to be.

    Weights, gradients and states are there together, and what every block keeps: all its activations, or with checkpointing its
    input alone. Beside them is either the end of the network with its logits, or what the backward pass of one block needs:
    its activations, where they are computed again, the gradients in flight, and the matrix that is dequantised. The larger one
    is counted.

    Raises
    ------
    CapabilityError
        If a quantised base is to be trained itself.
    DomainError
        If there are more tokens than positions.
    """
    if trained.everything and run.quantised != "none":
        raise CapabilityError(f"full: weights in {run.quantised} cannot be trained, expected quantised to be none.")
    decoder.require_positions(run.sequence, trained.prompt + trained.keys)
    parts = (*_weights(decoder, run), *_training(trained, run), *_forward(decoder, trained, run))
    return [part for part in parts if part.bytes]


def _weights(decoder: Decoder, run: Run):
    e, linear, parameters = BYTES[run.dtype], decoder.linear(), decoder.parameters()
    if run.quantised == "none":
        yield Part("weights", e * parameters, f"{e} x {parameters:,}")
        return
    matrices, double = decoder.matrices(), run.quantised == "nf4-double"
    packed = decoder.layers * sum((m.elements + 1) // 2 for m in matrices)
    scales = decoder.layers * sum(constants(m.elements, run.blocksize, double=double) for m in matrices)
    yield Part("dense weights", e * (parameters - linear), f"{e} x {parameters - linear:,}")
    yield Part("4-bit weights", packed, f"1/2 x {linear:,}")
    each = f"1/{run.blocksize} + 4/{run.blocksize * 256}" if double else f"4/{run.blocksize}"
    yield Part("quantisation constants", scales, f"({each}) x {linear:,}{' + 4 a matrix' if double else ''}")


def _training(trained: Trained, run: Run):
    dtype = run.dtype if trained.everything else run.adapter_dtype
    e, parameters = BYTES[dtype], trained.parameters
    if not trained.everything:
        yield Part("adapter", e * parameters, f"{e} x {parameters:,}")
    if trained.everything and run.master and e < 4:
        yield Part("master weights", 4 * parameters, f"4 x {parameters:,}")
    yield Part("gradients", e * parameters, f"{e} x {parameters:,}")
    bytes, paged = state(run.optimizer, parameters), run.optimizer.startswith("paged")
    yield Part("optimizer state", bytes, f"{bytes / max(parameters, 1):.4g} x {parameters:,}", paged)


def _forward(decoder: Decoder, trained: Trained, run: Run):
    e, layers = BYTES[run.dtype], decoder.layers
    batch = Batch(run.batch, run.sequence, e, run.fused)
    given, *inside = block(decoder, trained, batch)
    outside = ends(decoder, trained, batch)
    if run.checkpointing:
        yield Part("blocks' inputs", layers * given.bytes, f"{layers} x {given.bytes:,}")
    else:
        kept = given.bytes + total(inside)
        yield Part("blocks' activations", layers * kept, f"{layers} x {kept:,}")
    ending = [Part("last norm and logits", total(outside), _in_mb(outside))]
    largest = max(m.elements for m in decoder.matrices()) if run.quantised != "none" else 0
    flight = in_flight(decoder, trained, batch)
    backward = [
        Part("one block's activations", total(inside) if run.checkpointing else 0, _in_mb(inside)),
        Part("gradients in flight", flight, f"{flight:,}"),
        Part("one dequantised matrix", e * largest, f"{e} x {largest:,}"),
    ]
    yield from max(ending, backward, key=lambda parts: sum(part.bytes for part in parts))


def _in_mb(kept: list[Kept]) -> str:
    """Each tensor by its name."""
    return "MB: " + " + ".join(f"{tensor.bytes / 1e6:.1f} {tensor.name}" for tensor in kept)
