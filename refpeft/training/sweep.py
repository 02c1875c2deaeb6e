"""A sweep: every method at every rank with every seed, trained alike, and what each makes of what was held out.

A sweep is a folder. ``plan.json`` says what it is. ``runs/lora-rank8-seed0`` is a run, see `refpeft.training.loop`; what came out
of it, its *row*, is written whole when it has ended. So a sweep that was killed, given again, does what is missing, and goes on
with what had begun. ``sweep.json`` has all rows, and a *point* for each method and rank: the mean over seeds with its interval.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refpeft import intervals
from refpeft.convert.quantise import Settings
from refpeft.convert.source import digest, open_model
from refpeft.errors import AttributeValueError
from refpeft.files import atomic_write, plain, read_json
from refpeft.memory.machine import require_memory
from refpeft.methods import Method
from refpeft.models import LanguageModel, TextClassifier
from refpeft.models.tokens import tokenizer
from refpeft.training import choice, loop
from refpeft.training.classification import Labelled
from refpeft.training.evaluation import perplexity
from refpeft.training.folder import enter
from refpeft.training.task import Task

SCORES = ("loss", "accuracy")
"""What a task may say of a model."""


class Run(NamedTuple):
    """One of a sweep.

    Attributes
    ----------
    method : str
    rank : int or None
        None where the method has none.
    seed : int
        Of the adapter's start and of the order of the text.
    """

    method: str
    rank: int | None
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.method}{'' if self.rank is None else f'-rank{self.rank}'}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is swept, and what all runs share.

    Attributes
    ----------
    model, data : str
        Paths that every process can open.
    task : Task
    methods : tuple of str
    ranks, seeds : tuple of int
    numbers : dict
        Of methods that have them: alpha, tokens, reduction.
    targets : str
        Of methods for matrices, see `refpeft.memory.decoder.Decoder.select`.
    sequence : int
        Tokens that a row of text predicts, or to which a text with a label is cut.
    share : float
        Of the text, which is held out; every run has the same, see `refpeft.training.task`.
    backend : str
    quantise : refpeft.convert.quantise.Settings or None
        How the model's matrices are, whatever the method.
    settings : Settings
        A run's seed takes the place of the one in them.
    """

    model: str
    data: str
    task: Task
    methods: tuple[str, ...]
    ranks: tuple[int, ...]
    seeds: tuple[int, ...]
    numbers: dict[str, Any]
    targets: str
    sequence: int
    share: float
    backend: str
    quantise: Settings | None
    settings: loop.Settings

    def __post_init__(self):
        for name, values in (("methods", self.methods), ("ranks", self.ranks), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise AttributeValueError(f"{name} must be one or more, each once, but {list(values)} came.")
        if min(self.seeds) < 0:
            raise AttributeValueError(f"seeds must be 0 or more, but {min(self.seeds)} came.")
        if self.sequence < 1:
            raise AttributeValueError(f"sequence must be at least 1, but {self.sequence} came.")
        if not 0 < self.share < 1:
            raise AttributeValueError(f"the share held out must lie between 0 and 1, but {self.share} came.")

    def runs(self) -> list[Run]:
        """All of them; a method without a rank has one for each seed."""
        ranks = {m: self.ranks if choice.takes(m, "rank") else (None,) for m in self.methods}
        return [Run(m, rank, seed) for m in self.methods for rank in ranks[m] for seed in self.seeds]

    def record(self) -> dict[str, Any]:
        """All that makes the sweep what it is, the bytes of the data and of the model too."""
        shared = {name: value for name, value in asdict(self.settings).items() if name != "seed"}
        apart = ("numbers", "settings", "quantise", "task")
        own = {name: value for name, value in vars(self).items() if name not in apart}
        own |= {"quantised": asdict(self.quantise)} if self.quantise else {}
        own |= {"task": "language"} | self.task.record()
        bytes = {
            "sha256": hashlib.sha256(Path(self.data).read_bytes()).hexdigest(),
            "sha256 of the model": digest(open_model(self.model, four_bit=True)),
        }
        return own | self.numbers | shared | bytes

    def text(self) -> tuple[np.ndarray | Labelled, np.ndarray | Labelled]:
        """Rows to train on, and rows that are held out."""
        return _parted(self.task, self.data, self.model, self.sequence, self.share)

    def begun(self, run: Run) -> tuple[LanguageModel | TextClassifier, Method, str]:
        """What a run starts from: the model, the method as the model takes it, and the pattern of its sites."""
        quantise = choice.base(run.method, self.quantise)
        model = _model(self.task, self.model, run.seed if self.task.drawn else 0, self.backend, quantise).twin()
        chosen = choice.configured(run.method, **self.numbers, rank=run.rank)
        return model, *choice.at(model.shape, chosen, self.targets)


def sweep(plan: Plan, out: Path, executor: Executor, advance: Callable[[int], None] = lambda done: None) -> dict:
    """Carry out what is missing of a sweep.

    Parameters
    ----------
    plan : Plan
    out : Path
        Its folder. One that was begun by an equal plan goes on.
    executor : concurrent.futures.Executor
        Who does it, see `refpeft.training.executors`, where it also ends where it is interrupted.
    advance : callable
        Told how many more are done, whenever some are.

    Returns
    -------
    sweep : dict
        What ``sweep.json`` holds: the plan, ``base`` (a point of what runs are set beside), ``runs`` and ``points``.

    Raises
    ------
    RefpeftError
        If the folder holds another, or one of the runs is not possible; nothing is begun then.
    """
    runs = plan.runs()
    missing = [run for run in runs if not _row(out, run).exists()]
    if missing:
        require_possible(plan)
    enter(out, "plan.json", "sweep", plan.record())
    futures = [executor.submit(carry_out, plan, run, out) for run in missing]
    if not (out / "base.json").exists():
        futures.insert(0, executor.submit(measure_base, plan, out))
    advance(len(runs) + 1 - len(futures))
    try:
        for future in as_completed(futures):
            future.result()
            advance(1)
    except Exception:
        for future in futures:
            future.cancel()
        raise
    rows = [read_json(_row(out, run)) for run in runs]
    base = read_json(out / "base.json")
    name, scores = base["name"], base["scores"]
    base = point(name, None, 0, 0, {score: (value,) * 3 for score, value in scores.items()})
    found = {"plan": plan.record(), "base": base, "runs": rows, "points": points(rows)}
    atomic_write(out / "sweep.json", (json.dumps(plain(found), indent=2) + "\n").encode())
    return found


def require_possible(plan: Plan) -> None:
    """Try every method at every rank on the model, and cut the text.

    Raises
    ------
    RefpeftError
        Where a run would fail at its start.
    """
    trained, held = plan.text()
    for run in plan.runs():
        if run.seed == plan.seeds[0]:
            model, method, sites = plan.begun(run)
            require_memory(
                model.shape, run.method, method, plan.targets, loop.longest(trained), plan.settings.optimizer
            )
            loop.require_positions(model, method, held)
            loop.begin(model, method, sites, trained, replace(plan.settings, seed=run.seed))
    _model.cache_clear()


def carry_out(plan: Plan, run: Run, out: Path) -> None:
    """Train, measure and write the row, unless it is there: a cluster may ask twice.

    A run that was killed between its last step and its row has its adapter written again, from its last state.
    """
    if _row(out, run).exists():
        return
    trained, held = plan.text()
    folder, settings = out / "runs" / run.name, replace(plan.settings, seed=run.seed)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    identity = {"model": plan.model, "data": plan.data, "sequence": plan.sequence, "backend": plan.backend}
    model, method, sites = plan.begun(run)
    identity |= plan.task.record() | {"held_out": plan.share}
    losses = loop.train(model, method, sites, trained, settings, folder, identity)
    count = sum(math.prod(array.shape) for array in model.trained.values())
    scores = plan.task.scores(model, held, settings.batch)  # type: ignore[arg-type]
    row = {**run._asdict(), "trained": count, **scores, "losses": losses}
    atomic_write(_row(out, run), json.dumps(row).encode())
    shutil.rmtree(folder / "state")


def measure_base(plan: Plan, out: Path) -> None:
    """What runs are set beside."""
    trained, held = plan.text()
    how = {"backend": plan.backend, "quantise": plan.quantise}
    name, scores = plan.task.base(plan.model, trained, held, plan.settings.batch, **how)  # type: ignore[arg-type]
    atomic_write(out / "base.json", json.dumps({"name": name, "scores": scores}).encode())


def points(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs that differ in nothing but their seed, as one: what they train, the mean of each of their scores, Student's interval.

    The interval is of seeds alone, since all saw the same text; from one seed it is infinite.
    """
    found = []
    for (method, rank), group in itertools.groupby(rows, lambda row: (row["method"], row["rank"])):
        same = list(group)
        scores = {name: intervals.mean([row[name] for row in same]) for name in SCORES if name in same[0]}
        found.append(point(method, rank, len(same), same[0]["trained"], scores))
    return found


def point(
    method: str, rank: int | None, seeds: int, trained: int, scores: Mapping[str, tuple[float, float, float]]
) -> dict[str, Any]:
    """A point of the picture; a score is (low, mean, high). A language model's loss is a perplexity, too."""
    found: dict[str, Any] = {"method": method, "rank": rank, "seeds": seeds, "trained": trained}
    for name, (low, mean, high) in scores.items():
        before = "" if name == "loss" else f"{name}_"
        found |= {name: mean, f"{before}low": low, f"{before}high": high}
    return found if "accuracy" in found else found | {"perplexity": perplexity(found["loss"])}


def _row(out: Path, run: Run) -> Path:
    return out / "runs" / run.name / "row.json"


@functools.lru_cache(1)
def _model(task: Task, path: str, seed: int, backend: str, quantise: Settings | None) -> LanguageModel | TextClassifier:
    """A model, once in a process, whatever runs see it."""
    return task.model(path, seed, backend=backend, quantise=quantise)


@functools.lru_cache(1)
def _parted(task: Task, data: str, model: str, sequence: int, share: float):
    return task.parted(data, tokenizer(model), sequence, share)
