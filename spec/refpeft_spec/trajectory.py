"""Trajectories: twenty steps of AdamW on a tiny decoder, with each kind of method that stands in a model.

``golden/train/decoder.safetensors`` holds the weights, the rows of text and which of them each step sees;
``golden/train/METHOD.safetensors`` the arrays that a method starts from, ``start.SITE.ARRAY``, and in float64 the loss of every
step, ``golden.loss``, and what was trained, ``golden.SITE.ARRAY``: along the first axis the value and the budget. The page
``training.md`` tells all that a reader in another language needs, and what the budget proves.

The value is the reference's own trajectory in float64, by a loop of its own, so that `refpeft.training.loop` too is held to
something else. The budget is perturbed: through twenty steps every proven bound grows past use.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refpeft import methods
from refpeft.backend import Backend
from refpeft.errors import FormatError
from refpeft.formats import safetensors
from refpeft.golden import Golden
from refpeft.interpreted import Interpreted
from refpeft.memory.decoder import Decoder
from refpeft.methods import Method
from refpeft.models import LanguageModel
from refpeft.models.places import operations, place
from refpeft.numerics.perturbed import SAMPLES, spread
from refpeft.numerics.precision import Precision, standard_precision
from refpeft.operation import find, matches
from refpeft.training.loop import Settings
from refpeft.training.text import batch
from refpeft_spec.golden import FOLDER, differences

FORMAT = "refpeft-trajectory/1"
DECODER = "decoder.safetensors"
DTYPE = "float32"
"""In which optimizers keep what they step."""

SHAPE = Decoder(
    name="tiny", width=16, layers=2, heads=2, kv_heads=1, head_size=8, inner=16, vocabulary=32, tied=True
)  # fmt: skip
EPS = 1e-5
SETTINGS = Settings(steps=20, batch=2, lr=0.05, schedule="cosine", warmup=3, optimizer="adamw", decay=0.05)
OPTIMIZER = "adamw.step"
PLAIN = ("nn.embedding", "nn.rms_norm", "nn.linear", "nn.rope", "nn.attention", "nn.swiglu", "nn.cross_entropy")
"""What the decoder calls without a method; for the last of them and the head, a backend may have `nn.lm_loss` whole."""


@dataclass(frozen=True)
class Trajectory:
    """Twenty steps with one method.

    Attributes
    ----------
    name : str
        ``train.METHOD``: what ``--operations`` selects.
    method : Method
    sites : str
        Pattern of the sites at which it stands.
    """

    name: str
    method: Method
    sites: str

    @property
    def operations(self) -> tuple[str, ...]:
        """All that is called."""
        return tuple(sorted({*PLAIN, *operations(self.method), OPTIMIZER}))

    @property
    def differentiated(self) -> tuple[str, ...]:
        """Those of them whose gradients are asked for."""
        return tuple(name for name in self.operations if name not in ("nn.embedding", OPTIMIZER))

    def start(self, backend: str | Backend = "reference", device: str = "") -> LanguageModel:
        """The decoder with the method's arrays as they are before the first step."""
        model = decoder(backend, device)
        model.attach(self.sites, self.method, np.random.default_rng(SETTINGS.seed))
        return model

    def run(self, array: Callable, scalar: Callable) -> dict[str, Any]:
        """The trajectory in an interpretation, see `Interpreted`: the loss of every step, and at the end what was trained."""
        backend, text = Interpreted(array, scalar), rows()
        model, step = self.start(backend), backend.implementation(OPTIMIZER).forward
        moments = {name: [model.asarray(np.zeros(p.shape)) for _ in "mv"] for name, p in model.trained.items()}
        losses = []
        for t in range(1, SETTINGS.steps + 1):
            loss, gradients = model.loss(batch(text, SETTINGS.batch, SETTINGS.seed, t - 1))
            losses.append(loss)
            for name, p in model.trained.items():
                site, _, own = name.rpartition(".")
                numbers = {"lr": rate(t), "step": t, "decay": SETTINGS.decay}
                (p, *moments[name]), _ = step(p, gradients[name], *moments[name], **numbers)
                model.sites[site].arrays[own] = p
        return {"loss": np.array(losses)} | model.trained

    def golden(self, precision: Precision | None = None, samples: int = SAMPLES) -> dict[str, Golden]:
        """The float64 trajectory and its perturbed budget, for a precision that is not the standard one."""
        found = spread(self.run, precision or standard_precision(DTYPE), samples=samples)
        return {
            n: Golden(value, np.zeros(value.shape), budget, "perturbed", DTYPE) for n, (value, budget) in found.items()
        }

    def load(self, folder: str | Path = FOLDER) -> dict[str, Golden]:
        """The trajectory as its golden file has it, for the standard precision.

        Raises
        ------
        FormatError
            If there is none.
        """
        tensors = _read(self._path(folder)).tensors
        parts = {n.removeprefix("golden."): a for n, a in tensors.items() if n.startswith("golden.")}
        return {
            n: Golden(value, np.zeros(value.shape), budget, "perturbed", DTYPE) for n, (value, budget) in parts.items()
        }

    def _path(self, folder: str | Path) -> Path:
        return _place(folder) / f"{self.name.partition('.')[2]}.safetensors"

    def _started(self) -> dict[str, np.ndarray]:
        """The arrays that the method brings, by the names of the file."""
        return {f"start.{site}.{n}": a for site, its in self.start().arrays().items() for n, a in its.items()}

    def _facts(self) -> dict[str, str]:
        """What a reader must know of the method: what stands at its sites, and which of its arrays are trained."""
        layers = {site: layer for site, layer in self.start().sites.items() if layer.brought}
        sites = {
            s: {"operation": y.operation, "attributes": y.attributes, "trained": y.trained} for s, y in layers.items()
        }
        method = {"name": type(self.method).__name__} | asdict(self.method)
        return {"format": FORMAT, "method": json.dumps(method), "sites": json.dumps(sites)}


@functools.cache
def trajectories() -> dict[str, Trajectory]:
    """All of them by name: one method of each kind of site, and of each way to stand at a matrix."""
    chosen = {
        "lora": (methods.LoRA(rank=2, alpha=4), "layers.0.attn.q,layers.1.attn.v"),
        "dora": (methods.DoRA(rank=2, alpha=4), "layers.*.attn.v"),
        "ia3": (methods.IA3(), "layers.*.attn.k,layers.*.attn.v"),
        "bitfit": (methods.BitFit(), "layers.0.attn.q,layers.1.mlp.up"),
        "adapter": (methods.Houlsby(reduction=8), "layers.0.mlp.out"),
        "prefix": (methods.PTuningV2(tokens=2, size=SHAPE.head_size), "*"),
        "prompt": (methods.PromptTuning(tokens=2), "*"),
    }
    return {f"train.{name}": Trajectory(f"train.{name}", *how) for name, how in chosen.items()}


def matching(pattern: str) -> dict[str, Trajectory]:
    """Those whose name matches."""
    return {name: trajectory for name, trajectory in trajectories().items() if matches(name, pattern)}


def rate(step: int) -> float:
    """The learning rate of a step, counted from 1."""
    return SETTINGS.factor(step) * SETTINGS.lr


def decoder(backend: str | Backend = "reference", device: str = "") -> LanguageModel:
    """The plain model on a backend."""
    weights = {n: a.astype(DTYPE) for n, a in _decoder_file().items() if n not in ("rows", "order")}
    return LanguageModel(SHAPE, weights, eps=EPS, backend=backend, device=device)


def rows() -> np.ndarray:
    """The text, (4, 13) token ids."""
    return _decoder_file()["rows"].astype(np.int64)


@functools.cache
def _decoder_file() -> dict[str, np.ndarray]:
    return _read(_place(FOLDER) / DECODER).tensors


def _place(folder: str | Path) -> Path:
    return Path(folder) / "train"


def _read(path: Path) -> safetensors.Archive:
    if not path.is_file():
        raise FormatError(f"there is no golden file {path}: 'refpeft golden make' writes it.")
    archive = safetensors.load(path)
    if archive.metadata.get("format") != FORMAT:
        raise FormatError(f"{path} is no trajectory: its metadata must have the format {FORMAT!r}.")
    return archive


def _drawn() -> dict[str, np.ndarray]:
    """The decoder and its text, by seed: numbers of half precision, which float32 and bfloat16's range hold."""
    random, w = np.random.default_rng(0), SHAPE.width
    gains = ["norm"] + [f"layers.{i}.{n}" for i in range(SHAPE.layers) for n in ("attn.norm", "mlp.norm")]
    drawn = {"embedding": random.normal(size=(SHAPE.vocabulary, w)) / 4}
    drawn |= {n: 1 + random.normal(size=w) / 8 for n in gains}
    for i in range(SHAPE.layers):
        drawn |= {f"layers.{i}.{place(m.site)}": random.normal(size=(m.o, m.i)) / m.i**0.5 for m in SHAPE.matrices()}
    text = [random.integers(0, SHAPE.vocabulary, (4, 1))]
    for _ in range(12):
        text.append((5 * text[-1] + 3 + (random.random((4, 1)) < 0.2)) % SHAPE.vocabulary)
    count = np.arange(len(text[0]))
    order = [batch(count, SETTINGS.batch, SETTINGS.seed, step) for step in range(SETTINGS.steps)]
    integers = {"rows": np.concatenate(text, axis=1).astype(np.int8), "order": np.array(order, np.int8)}
    return {n: a.astype(np.float16) for n, a in drawn.items()} | integers


def _decoder_facts() -> dict[str, str]:
    sizes = {n: getattr(SHAPE, n) for n in ("width", "layers", "heads", "kv_heads", "head_size", "inner", "vocabulary")}
    optimizer = find(OPTIMIZER).check_attributes({"lr": 0.0, "step": 1, "decay": SETTINGS.decay})
    constant = {"operation": OPTIMIZER} | {n: v for n, v in optimizer.items() if n not in ("lr", "step")}
    rates = [rate(step) for step in range(1, SETTINGS.steps + 1)]
    facts = {"sizes": sizes, "eps": EPS, "rotary_base": 10000, "optimizer": constant, "learning_rates": rates}
    return {"format": FORMAT} | {n: json.dumps(v) for n, v in facts.items()}


def make(name: str, folder: str | Path = FOLDER) -> dict[str, int]:
    """Write the golden files of one trajectory, the decoder's among them, which all share.

    Returns
    -------
    dict of file name to size in bytes
    """
    trajectory, place = trajectories()[name], _place(folder)
    place.mkdir(parents=True, exist_ok=True)
    safetensors.save(place / DECODER, _drawn(), _decoder_facts())
    _decoder_file.cache_clear()
    golden = {f"golden.{n}": np.stack([g.value, g.budget]) for n, g in trajectory.golden().items()}
    own = trajectory._path(folder)
    safetensors.save(own, trajectory._started() | golden, trajectory._facts())
    return {path.name: path.stat().st_size for path in (place / DECODER, own)}


def verify(name: str, folder: str | Path = FOLDER, samples: int = SAMPLES) -> list[str]:
    """What is wrong with the golden files of a trajectory, a sentence each; nothing if they hold.

    Of the budget's runs only the first ``samples`` may be made again: none of them may then lead outside of it.
    """
    trajectory = trajectories()[name]
    try:
        for path, arrays, facts in (
            (_place(folder) / DECODER, _drawn(), _decoder_facts()),
            (trajectory._path(folder), trajectory._started(), trajectory._facts()),
        ):
            there = _read(path)
            kept = {n: a.tobytes() for n, a in there.tensors.items() if not n.startswith("golden.")}
            if there.metadata != facts or kept != {n: a.tobytes() for n, a in arrays.items()}:
                return [f"{path.name} is not what {name} starts from."]
        stored, fresh = trajectory.load(folder), trajectory.golden(samples=samples)
    except FormatError as error:
        return [str(error)]
    if stored.keys() != fresh.keys():
        return [f"{name} must hold {', '.join(sorted(fresh))}, but holds {', '.join(sorted(stored))}."]
    if samples < SAMPLES:
        fresh = {n: replace(g, budget=np.maximum(g.budget, stored[n].budget)) for n, g in fresh.items()}
    return list(differences({n: (g.value, g.rest, g.budget, g.kind) for n, g in stored.items()}, fresh))
