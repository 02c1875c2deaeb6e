"""Training: steps that a killed run takes up again, bit for bit, where it left off.

A run is a folder. ``run.json`` says what it is; ``state`` holds parameters and optimizer after the last complete step, see
`refpeft.training.store`; ``metrics.jsonl`` has a line for each step; ``adapter`` is what came out, see
`refpeft.formats.adapters`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refpeft.errors import AttributeValueError, CapabilityError, FormatError
from refpeft.files import atomic_write, named, sweep_up
from refpeft.formats import adapters
from refpeft.formats.adapter import Adapter
from refpeft.methods import Method, needs_of
from refpeft.models import LanguageModel, TextClassifier
from refpeft.models.dropout import Dropout, drops
from refpeft.models.places import kind_of, operations, standing
from refpeft.models.tasks import takes
from refpeft.ops import schedule
from refpeft.training import optimizers
from refpeft.training.classification import Labelled
from refpeft.training.folder import enter
from refpeft.training.paged import PAGE, Paged
from refpeft.training.pages import frame_count
from refpeft.training.text import batch

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is trained.

    Attributes
    ----------
    steps, batch : int
        How many steps, and rows of text in each.
    lr : float
        The learning rate at its peak.
    schedule : str
        One of `SCHEDULES`, after ``warmup`` steps of rising.
    warmup : int
    optimizer : str
        A name of `refpeft.training.optimizers.OPTIMIZERS`, ``paged-`` before it or not.
    budget : int
        How many bytes of state a paged one holds; the rest is in the run's file.
    decay : float
        Of weights, by the optimizer.
    seed : int
        Of the adapter's start and of the order of the text.
    start_batches : int
        How many batches a start from data looks at, as EVA's: the first.
    start_text : tuple of int
        Token ids of a text that a prompt or a prefix starts from; drawn where there are none.
    checkpointing : bool
        Whether blocks are computed again on the way back.
    dropout : float
        The share that is dropped of what enters LoRA's A, or a relative's. Beside it, what a method or a model says itself.
    """

    steps: int = 200
    batch: int = 4
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 0
    optimizer: str = "adamw"
    budget: int = 2**24
    decay: float = 0.0
    seed: int = 0
    start_batches: int = 8
    start_text: tuple[int, ...] = ()
    checkpointing: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        if self.start_batches < 1:
            raise AttributeValueError(f"start_batches must be at least 1, but {self.start_batches} came.")
        if self.steps < 1 or self.batch < 1:
            raise AttributeValueError(
                f"at least 1 step of 1 row is needed, but steps {self.steps} and batch {self.batch} came."
            )
        if self.seed < 0:
            raise AttributeValueError(f"seed must be 0 or more, but {self.seed} came.")
        for name in ("lr", "decay"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise AttributeValueError(f"{name} must be 0 or more, and finite, but {value} came.")
        if self.schedule not in SCHEDULES:
            raise AttributeValueError(f"schedule must be one of {', '.join(SCHEDULES)}, but {self.schedule!r} came.")
        if not 0 <= self.warmup <= self.steps:
            raise AttributeValueError(f"warmup must be from 0 to the {self.steps} steps, but {self.warmup} came.")
        Dropout(self.dropout)
        optimizers.chosen(self.optimizer, self.decay)
        if self.optimizer.startswith(optimizers.PAGED):
            frame_count(self.budget, PAGE)

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by in a step, counted from 1; it has fallen to zero behind the last."""
        if self.schedule == "constant":
            return schedule.constant(step, warmup=self.warmup)
        falling = {"linear": schedule.linear, "cosine": schedule.cosine}[self.schedule]
        return falling(step, total=self.steps + 1, warmup=self.warmup)


def train(
    model: LanguageModel | TextClassifier,
    method: Method,
    pattern: str,
    rows: np.ndarray | Labelled,
    settings: Settings,
    out: Path,
    identity: dict[str, Any],
    advance: Callable[[int, float], None] = lambda step, loss: None,
    finish: Callable[[list[float]], None] = lambda losses: None,
) -> list[float]:
    """Train a method's arrays at the sites of a model.

    Parameters
    ----------
    model : LanguageModel or TextClassifier
        Of which it trains the head's part, too, that the model says.
    method : Method
        One that stands at sites of a model, see `refpeft.models.places`.
    pattern : str
        Of the sites.
    rows : (count, length) int64, or Labelled
        The text, see `refpeft.training.text.rows`; a classifier's has labels.
    settings : Settings
    out : Path
        The run's folder. One that was begun with equal settings goes on.
    identity : dict
        What else makes the run what it is, as JSON can say it: model and text.
    advance : callable
        Told each step and its loss.
    finish : callable
        Told all losses before the adapter is written, which makes the run complete.

    Returns
    -------
    losses : list of float
        Of all steps, those before an interruption included.

    Raises
    ------
    CapabilityError
        If the method stands at no site, or the backend lacks an operation.
    FormatError
        If the folder holds another run, or one that is complete.
    """
    begin(model, method, pattern, rows, settings)
    what = {"method": {"name": type(method).__name__, **asdict(method)}, "sites": pattern, **asdict(settings)}
    what |= identity | {"sha256 of the text's tokens": _digest(rows)}
    enter(out, "run.json", "run", what)
    if adapters.is_there(out / "adapter"):
        raise FormatError(f"{out} holds this run, complete; name a new folder to train again.")
    metrics = out / "metrics.jsonl"
    with optimizer(model, method, settings, out / "state") as stepping:
        enter(out, "run.json", "run", what)  # another process may have begun one before the lock on the state was ours
        for folder in (out, out / "adapter"):
            sweep_up(folder)
        lines = _steps_of(metrics, stepping.steps)
        atomic_write(metrics, "".join(line + "\n" for line in lines).encode())
        losses = [json.loads(line)["loss"] for line in lines]
        for step in range(stepping.steps, settings.steps):
            began = time.perf_counter()
            some = batch(rows, settings.batch, settings.seed, step)
            dropout = Dropout(settings.dropout, settings.seed, step)
            loss, gradients = model.loss(**_given(some), checkpointing=settings.checkpointing, dropout=dropout)
            factor = settings.factor(step + 1)
            losses.append(loss)
            line = {"step": step + 1, "loss": loss, "lr": settings.lr * factor}
            _append(metrics, json.dumps(line | {"tokens_per_second": some.size / (time.perf_counter() - began)}))
            stepping.step(gradients, factor)
            advance(step + 1, loss)
        finish(losses)
        head, labels = getattr(model, "head", {}), getattr(rows, "names", ())
        made = Adapter(*model.kept(method), family=model.shape.family, head=head, labels=labels)
        adapters.save(out / "adapter", made, base=str(identity.get("model", "")))
    return losses


def _digest(rows: np.ndarray | Labelled) -> str:
    """SHA-256 of what is trained on."""
    arrays: list[Any] = [*rows.texts, rows.labels] if isinstance(rows, Labelled) else [rows]
    digest = hashlib.sha256(json.dumps([array.shape for array in arrays]).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array, "<i8").tobytes())
    return digest.hexdigest()


def _steps_of(metrics: Path, steps: int) -> list[str]:
    """The lines of the steps that are complete; one behind them is of a step that was not.

    Raises
    ------
    FormatError
        If one is missing or damaged.
    """
    lines = metrics.read_bytes().split(b"\n")[:steps] if metrics.exists() else []
    for number in range(steps):
        try:
            said = json.loads(lines[number])
            whole = said["step"] == number + 1 and isinstance(said["loss"], float)
        except (ValueError, LookupError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise FormatError(
                f"{metrics} must have a line for each of the {steps} steps that are complete, but line {number + 1} is none: "
                "it was changed since."
            )
    return [line.decode() for line in lines]


def _append(file: Path, line: str) -> None:
    """Put a line behind the others, on the disk before the step that it is of can be complete there."""
    try:
        with open(file, "ab") as opened:
            opened.write(f"{line}\n".encode())
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        named(error, file)
        raise


def _given(rows: np.ndarray | Labelled) -> dict[str, Any]:
    """What the model's loss takes of rows."""
    if not isinstance(rows, Labelled):
        return {"ids": rows}
    ids, mask = rows.padded
    return {"ids": ids, "labels": rows.labels, "mask": mask}


def optimizer(
    model: LanguageModel | TextClassifier, method: Method, settings: Settings, folder: Path | None = None
) -> Paged:
    """What steps the model's trained arrays: in memory whole, or under the budget where it is paged."""
    kind, numbers = optimizers.chosen(settings.optimizer, settings.decay)
    parameters, own = model.trained, method.learning_rates(settings.lr)
    whole = 8 * sum(math.prod(p.shape) for p in parameters.values()) + 2 * PAGE
    budget = settings.budget if settings.optimizer.startswith(optimizers.PAGED) else whole
    head = {f"{site}.{name}": settings.lr for site, its in getattr(model, "head", {}).items() for name in its}
    rates = head | {name: own[name.rpartition(".")[2]] for name in parameters if name not in head}
    where: dict[str, Any] = {"folder": folder, "backend": model.backend, "device": model.device}
    return kind(parameters, lr=rates, budget=budget, **where, **numbers)


def begin(
    model: LanguageModel | TextClassifier,
    method: Method,
    pattern: str,
    rows: np.ndarray | Labelled,
    settings: Settings,
) -> None:
    """Put a method at its sites as `train` starts: by the seed, and by the first batches of the text where it asks for data.

    Raises
    ------
    CapabilityError
        If the method stands at no site, or the backend lacks an operation of the method's or the optimizer's.
    DomainError
        If a token is none of the model's, or the longest text is longer than it may be, see `require_positions`.
    """
    kind, _ = optimizers.chosen(settings.optimizer, settings.decay)
    if settings.dropout and not drops(standing(method)):
        raise CapabilityError(
            f"{type(method).__name__} has no way that dropout lies on: {standing(method)} takes none."
        )
    if settings.dropout and hasattr(method, "dropout"):
        raise CapabilityError(
            f"{type(method).__name__} says itself what is dropped, by its option dropout, but a dropout of {settings.dropout} "
            "came beside it."
        )
    if takes(standing(method)):
        raise CapabilityError(
            f"{type(method).__name__} needs the task of each text, which a file of text does not say."
        )
    if settings.decay and getattr(method, "frozen", 0):
        raise CapabilityError(f"{type(method).__name__} has frozen tokens, which would decay: decay must be 0.")
    for operation in (*sorted(operations(method)), kind.operation):
        model.backend.implementation(operation)
    for ids in _alone(rows):
        model.checked(ids)
    require_positions(model, method, rows)
    seen = range(settings.start_batches if needs_of(method) else 0)
    first = [_given(batch(rows, settings.batch, settings.seed, step)) for step in seen]
    model.attach(pattern, method, np.random.default_rng(settings.seed), batches=first, text=settings.start_text)


def require_positions(model: LanguageModel | TextClassifier, method: Method, rows: np.ndarray | Labelled) -> None:
    """Refuse texts that with a method's virtual tokens are longer than the model's context, rotary positions' too.

    Raises
    ------
    DomainError
    """
    virtual = method.tokens if kind_of(standing(method)) in ("prompt", "attention") else 0  # type: ignore[attr-defined]
    model.shape.require_positions(longest(rows), virtual)


def longest(rows: np.ndarray | Labelled) -> int:
    """Tokens of the longest text that a model reads."""
    return rows.longest if isinstance(rows, Labelled) else rows.shape[1] - 1


def _alone(rows: np.ndarray | Labelled) -> list[np.ndarray]:
    """Token ids (n, s) without any padding: texts with labels each by itself."""
    return [text[None] for text in rows.texts] if isinstance(rows, Labelled) else [rows]
