"""A sweep: every method at every rank with every seed, trained alike, and what each makes of text that was held out.

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
from collections.abc import Callable
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refpeft import intervals
from refpeft.convert.quantise import Settings
from refpeft.errors import AttributeValueError
from refpeft.files import atomic_write, plain, read_json
from refpeft.methods import Method
from refpeft.models import LanguageModel, load
from refpeft.models.tokens import tokenizer
from refpeft.training import choice, loop, text
from refpeft.training.evaluation import mean_loss, perplexity
from refpeft.training.folder import enter


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
    methods : tuple of str
    ranks, seeds : tuple of int
    numbers : dict
        Of methods that have them: alpha, tokens, reduction.
    targets : str
        Of methods for matrices, see `refpeft.memory.decoder.Decoder.select`.
    sequence : int
        Tokens that a row of text predicts.
    share : float
        Of the text, which is held out; every run has the same, see `refpeft.training.text.parted`.
    backend : str
    quantise : refpeft.convert.quantise.Settings or None
        How the model's matrices are, whatever the method.
    settings : Settings
        A run's seed takes the place of the one in them.
    """

    model: str
    data: str
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
        if self.sequence < 1 or not 0 < self.share < 1:
            raise AttributeValueError(
                "a sequence of at least 1 and a share held out between 0 and 1 are needed, but "
                f"{self.sequence} and {self.share} came."
            )

    def runs(self) -> list[Run]:
        """All of them; a method without a rank has one for each seed."""
        ranks = {m: self.ranks if _ranked(m) else (None,) for m in self.methods}
        return [Run(m, rank, seed) for m in self.methods for rank in ranks[m] for seed in self.seeds]

    def record(self) -> dict[str, Any]:
        """All that makes the sweep what it is, the data's bytes too."""
        shared = {name: value for name, value in asdict(self.settings).items() if name != "seed"}
        own = {name: value for name, value in vars(self).items() if name not in ("numbers", "settings", "quantise")}
        own |= {"quantised": asdict(self.quantise)} if self.quantise else {}
        digest = hashlib.sha256(Path(self.data).read_bytes()).hexdigest()
        return own | self.numbers | shared | {"sha256": digest}

    def text(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on, and rows that are held out."""
        return _parted(self.data, self.model, self.sequence + 1, self.share)

    def begun(self, run: Run) -> tuple[LanguageModel, Method, str]:
        """What a run starts from: the model, the method as the model takes it, and the pattern of its sites."""
        model = _base(self.model, self.backend, choice.base(run.method, self.quantise)).twin()
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
        Who does it, see `refpeft.training.executors`.
    advance : callable
        Told how many more are done, whenever some are.

    Returns
    -------
    sweep : dict
        What ``sweep.json`` holds: the plan, ``base`` (the held-out loss without training), ``runs`` and ``points``.

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
    finally:
        for future in futures:
            future.cancel()
    base = read_json(out / "base.json")["loss"]
    rows = [read_json(_row(out, run)) | {"before": base} for run in runs]
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
    ids, _ = plan.text()
    for run in plan.runs():
        if run.seed == plan.seeds[0]:
            model, method, sites = plan.begun(run)
            loop.begin(model, method, sites, ids, replace(plan.settings, seed=run.seed))
    _base.cache_clear()


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
    losses = loop.train(model, method, sites, trained, settings, folder, identity | {"held_out": plan.share})
    row = {
        **run._asdict(),
        "trained": sum(math.prod(array.shape) for array in model.trained.values()),
        "after": mean_loss(model, held, settings.batch),
        "losses": losses,
    }
    atomic_write(_row(out, run), json.dumps(row).encode())
    shutil.rmtree(folder / "state")


def measure_base(plan: Plan, out: Path) -> None:
    """The held-out loss of the untrained model."""
    loss = mean_loss(_base(plan.model, plan.backend, plan.quantise), plan.text()[1], plan.settings.batch)
    atomic_write(out / "base.json", json.dumps({"loss": loss}).encode())


def points(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs that differ in nothing but their seed, as one: what they train, the mean of their held-out losses, Student's interval.

    The interval is of seeds alone, since all saw the same text; from one seed it is infinite.
    """
    found = []
    for (method, rank), group in itertools.groupby(rows, lambda row: (row["method"], row["rank"])):
        same = list(group)
        losses = intervals.mean([row["after"] for row in same])
        found.append(point(method, rank, len(same), same[0]["trained"], losses))
    return found


def point(
    method: str, rank: int | None, seeds: int, trained: int, losses: tuple[float, float, float]
) -> dict[str, Any]:
    """A point of the picture; the losses are (low, mean, high)."""
    low, loss, high = losses
    numbers = {"loss": loss, "low": low, "high": high, "perplexity": perplexity(loss)}
    return {"method": method, "rank": rank, "seeds": seeds, "trained": trained, **numbers}


def _ranked(method: str) -> bool:
    return "rank" in {field.name for field in fields(choice.named(method))}


def _row(out: Path, run: Run) -> Path:
    return out / "runs" / run.name / "row.json"


@functools.lru_cache(1)
def _base(model: str, backend: str, quantise: Settings | None) -> LanguageModel:
    """The model, once in a process, whatever runs it sees."""
    return load(model, backend=backend, quantise=quantise)


@functools.lru_cache(1)
def _parted(data: str, model: str, length: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    return text.parted(data, tokenizer(model), length, share)
