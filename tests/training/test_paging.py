"""Paged optimizers are the unpaged ones, within their budget, and outlive being killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refpeft.errors import RefpeftError
from refpeft.operation import find
from refpeft.plugins import backend as backend_named
from refpeft.training import PagedAdam, PagedAdam8bit, PagedAdamW, PagedLion, PagedSGD, pages, store
from refpeft.training.pages import HostFrames, PageTable
from refpeft.training.store import FileStore, MemoryStore

SHAPES = {"a": (13, 7), "b": (), "c": (300,), "d": (0, 4), "e": (2, 3, 5)}
OPTIMIZERS = {
    PagedSGD: {"momentum": 0.9, "nesterov": True, "decay": 0.1},
    PagedAdam: {},
    PagedAdamW: {"variant": "after", "decay": 0.1},
    PagedLion: {"decay": 0.1},
    PagedAdam8bit: {"variant": "bitsandbytes-cpu"},
}
BUDGETS = {
    "one page": (64, 64),
    "three pages": (200, 64),
    "pages of odd elements": (160, 56),
    "everything": (2**20, 64),
    "side by side": (2**16, 2**16),
}


def drawn(seed):
    """An array for each parameter."""
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def unpaged(kind, backend, steps, **numbers):
    """Every parameter stepped whole, with the backend's own function."""
    library, operation = backend_named(backend), find(kind.operation)
    results = {}
    for name, whole in drawn(0).items():
        p = whole.reshape(-1)
        state = [np.zeros(-(-p.size // s.share), s.dtype) for s in kind.state.values()]
        arrays = [library.asarray(x, "cpu") for x in (p.copy(), *state)]
        for step in range(1, steps + 1):
            counted = {"step": step} if "step" in operation.attributes else {}
            grad = library.asarray(drawn(step)[name].reshape(-1), "cpu")
            p, *state = arrays
            arrays, _ = library.implementation(kind.operation).forward(
                p, grad, *state, residuals=False, lr=0.01, **counted, **numbers
            )
        results[name] = library.to_numpy(arrays[0])
    return results


def paged(kind, backend, steps, budget, page_size, **options):
    """The same, paged; the parameters and the optimizer."""
    library = backend_named(backend)
    parameters = {name: library.asarray(p, "cpu") for name, p in drawn(0).items()}
    optimizer = kind(parameters, lr=0.01, budget=budget, page_size=page_size, backend=backend, **options)
    for step in range(optimizer.steps + 1, steps + 1):
        optimizer.step({name: library.asarray(g, "cpu") for name, g in drawn(step).items()})
    return {name: library.to_numpy(p) for name, p in parameters.items()}, optimizer


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_paged_equals_unpaged_bit_for_bit(kind, backend, tmp_path):
    """Whatever the budget and the pages, which cut parameters anywhere; in memory and in a file."""
    if backend == "torch":
        pytest.importorskip("torch")
    whole = unpaged(kind, backend, 4, **OPTIMIZERS[kind])
    for case, (budget, page_size) in BUDGETS.items():
        scale = 10 if kind is PagedAdam8bit else 1  # a page of a block, with some bytes to spare
        sizes = budget * scale, page_size * scale
        for folder in (None, tmp_path)[: 1 + (case == "pages of odd elements")]:
            parts, _ = paged(kind, backend, 4, *sizes, folder=folder, every=3, **OPTIMIZERS[kind])
            for name, p in whole.items():
                assert parts[name].tobytes() == p.tobytes(), (case, name)


@pytest.mark.parametrize("sizes", BUDGETS.values(), ids=BUDGETS)
def test_resident_bytes_never_exceed_the_budget(sizes, monkeypatch):
    """After every page that is brought; nor does the memory that was allocated for them."""
    most, bring = [0], PageTable._bring

    def watched(table, page):
        frame = bring(table, page)
        most[0] = max(most[0], len(table.resident) * sizes[1], table.frames.memory.nbytes)
        return frame

    monkeypatch.setattr(PageTable, "_bring", watched)
    paged(PagedAdamW, "reference", 3, *sizes)
    assert 0 < most[0] <= sizes[0]


class Late(HostFrames):
    """Frames that copy nothing before they must: what a GPU may do with copies on a stream of their own."""

    def __init__(self, count, size):
        super().__init__(count, size)
        self.waiting = []

    def fetch(self, frame, page):
        self.waiting.append((frame, super().fetch, frame, page))

    def spill(self, frame, page):
        self.waiting.append((None, super().spill, frame, page))

    def ready(self, frame):
        self._until(max((i + 1 for i, entry in enumerate(self.waiting) if entry[0] == frame), default=0))

    def settle(self):
        self._until(len(self.waiting))

    def _until(self, end):
        for _, copy, frame, page in self.waiting[:end]:
            copy(frame, page)
        del self.waiting[:end]


def test_copies_may_be_as_late_as_a_stream_makes_them(monkeypatch, tmp_path):
    """The table asks for what it needs: a page is ready before it is used, and all are settled before a commit."""
    whole = unpaged(PagedAdamW, "reference", 4)
    monkeypatch.setattr(pages, "HostFrames", Late)
    for case, sizes in BUDGETS.items():
        paged(PagedAdamW, "reference", 2, *sizes, folder=tmp_path / case)[1].close()
        parts, optimizer = paged(PagedAdamW, "reference", 4, *sizes, folder=tmp_path / case)
        assert isinstance(optimizer._frames, Late)
        assert all(parts[name].tobytes() == p.tobytes() for name, p in whole.items()), case


def test_the_page_used_longest_ago_gives_way():
    """A table of three frames: what is used stays, what was changed is written back, and nothing is fetched twice in vain."""
    table = PageTable(MemoryStore(np.zeros((5, 8), np.uint8)), HostFrames(3, 8), 3)
    for page in (0, 1, 2, 0, 3):
        table.frames.view(table.use(page), 0, 8, "uint8")[:] = page + 1
    assert list(table.resident) == [2, 0, 3]
    table.prefetch(2)
    assert list(table.resident) == [0, 3, 2]
    assert (table.fetched, table.spilled) == (4, 1)
    assert table.store.pages[:, 0].tolist() == [0, 2, 0, 0, 0]
    table.flush()
    assert table.store.pages[:, 0].tolist() == [1, 2, 3, 4, 0]


def test_steps_walk_there_and_back():
    """So that the pages that were used last are still there: all but as many as there are frames are fetched in a step."""
    _, optimizer = paged(PagedSGD, "reference", 2, 3 * 64, 64)
    count = len(optimizer._pages)
    fetched = optimizer.table.fetched
    optimizer.step(drawn(3))
    assert optimizer.table.fetched - fetched == count - 3


@pytest.mark.parametrize(("way", "amount"), [("lines", 13), ("chain", 40)])
def test_a_killed_run_goes_on_from_the_last_complete_step(way, amount, tmp_path):
    """By SIGKILL: before lines all through a step and its commit, and at random instants until the run is done."""
    if not hasattr(__import__("os"), "fork"):
        pytest.skip("there is no fork here")
    command = [sys.executable, str(Path(__file__).parent / "killed.py"), way, str(tmp_path / "run"), str(amount)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 5


def test_a_commit_syncs_pages_then_the_record_then_the_folder(tmp_path, monkeypatch):
    """A disk that loses power at any instant knows either record whole, and the pages that it speaks of."""
    held, order = FileStore(tmp_path, 2, 8, {}), []
    write, sync, flush = store.atomic_write, store._sync_folder, held._mapped.flush
    monkeypatch.setattr(store, "atomic_write", lambda *a: (order.append("record"), write(*a)))
    monkeypatch.setattr(store, "_sync_folder", lambda *a: (order.append("folder"), sync(*a)))
    monkeypatch.setattr(held, "_mapped", held._mapped)
    monkeypatch.setattr(type(held._mapped), "flush", lambda mapped: (order.append("pages"), flush()))
    held.next(1)[:] = 7
    assert held.current(1)[0] == 7
    held.commit(1)
    assert order == ["pages", "record", "folder"]


def test_between_commits_a_run_resumes_from_the_last_one(tmp_path):
    """With ``every=3``, seven steps leave the state after six; the parameters are those of then too."""
    paged(PagedAdamW, "reference", 7, 200, 64, folder=tmp_path, every=3)
    six, optimizer = paged(PagedAdamW, "reference", 0, 200, 64, folder=tmp_path, every=3)
    assert optimizer.steps == 6
    assert all(six[n].tobytes() == p.tobytes() for n, p in unpaged(PagedAdamW, "reference", 6).items())


P = np.ones(4, np.float32)
REFUSED = {
    "must hold at least one page, but it is 63 bytes": {"budget": 63},
    "the state of 1 elements must fit": {"page_size": 4},
    "multiple of 8 bytes": {"page_size": 60},
    "needs beta1 < 1": {"beta1": 1.0},
    "unknown argument 'momentum'": {"momentum": 0.9},
    "learning rate for each": {"lr": {"q": 0.1}},
    "every must be at least 1": {"every": 0},
    "p: a paged optimizer steps contiguous float32": {"parameters": {"p": P.astype(np.float64)}},
    "not contiguous, came": {"parameters": {"p": P[::2]}},
    "at least one element": {"parameters": {}, "lr": {}},
    "has no paged optimizers on cuda:0": {"device": "cuda:0"},
    "no backend": {"backend": "nobody"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_paged_is_refused(said):
    """In one sentence."""
    given = {"parameters": {"p": P}, "lr": 0.1, "budget": 64, "page_size": 64} | REFUSED[said]
    with pytest.raises(RefpeftError, match=said):
        PagedAdamW(given.pop("parameters"), **given)


def test_gradients_that_do_not_fit_are_refused_before_anything_moves():
    """By their names and sizes; the step does not count."""
    optimizer = PagedAdamW({"p": P.copy()}, lr=0.1, budget=64, page_size=64)
    for gradients in ({}, {"p": P[:3]}, {"p": P, "q": P}, {"p": P.astype(np.float64)}):
        with pytest.raises(RefpeftError, match=r"came|elements"):
            optimizer.step(gradients)
    assert optimizer.steps == 0


def test_neighbours_of_unlike_rates_are_stepped_at_their_own():
    """In one page, those of one rate by one call: as each alone."""
    rates, together = {"p": 0.1, "q": 0.1, "r": 0.2}, {name: P.copy() for name in "pqr"}
    PagedAdamW(together, lr=rates, budget=128, page_size=128).step(dict.fromkeys(rates, P))
    for name, rate in rates.items():
        alone = {name: P.copy()}
        PagedAdamW(alone, lr=rate, budget=128, page_size=128).step({name: P})
        assert together[name].tobytes() == alone[name].tobytes()


def test_an_interrupted_step_is_not_gone_on_from(tmp_path, monkeypatch):
    """After Ctrl-C in the middle of a step, stepping and committing are refused; a new optimizer has the last commit."""
    parameters, optimizer = paged(PagedAdamW, "reference", 2, 200, 64, folder=tmp_path)
    update, calls = optimizer._update, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(optimizer, "_update", interrupted)
    with optimizer:
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(drawn(3))
        for go_on in (lambda: optimizer.step(drawn(3)), optimizer.commit):
            with pytest.raises(RefpeftError, match="step 3 was interrupted"):
                go_on()
    parameters, _ = paged(PagedAdamW, "reference", 3, 200, 64, folder=tmp_path)
    assert all(parameters[n].tobytes() == p.tobytes() for n, p in unpaged(PagedAdamW, "reference", 3).items())


def damaged(folder, how):
    """A folder with a run in it, and something wrong."""
    paged(PagedAdamW, "reference", 1, 200, 64, folder=folder)
    record = folder / "record.json"
    held = json.loads(record.read_text())
    changes = {
        "short": lambda: (folder / "pages.bin").write_bytes(b"1234"),
        "gone": (folder / "pages.bin").unlink,
        "garbage": lambda: record.write_text("{"),
        "other": lambda: record.write_text(json.dumps(held | {"operation": "sgd.step"})),
        "places": lambda: record.write_text(json.dumps(held | {"place": "00"})),
        "list": lambda: record.write_text("[]"),
    }
    changes[how]()


@pytest.mark.parametrize("how", ["short", "gone", "garbage", "other", "places", "list"])
def test_a_folder_of_something_else_is_refused(how, tmp_path):
    """In one sentence that begins with its name, and nothing in it is touched."""
    damaged(tmp_path, how)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(RefpeftError, match=str(tmp_path)):
        paged(PagedAdamW, "reference", 1, 200, 64, folder=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_pages_that_are_in_use_are_refused(tmp_path):
    """Two optimizers would write over each other."""
    pytest.importorskip("fcntl")
    _, optimizer = paged(PagedAdamW, "reference", 1, 200, 64, folder=tmp_path)
    with optimizer, pytest.raises(RefpeftError, match="has these pages open"):
        paged(PagedAdamW, "reference", 1, 200, 64, folder=tmp_path)
    with pytest.raises(RefpeftError, match="are closed"):
        optimizer.step(drawn(2))
    paged(PagedAdamW, "reference", 1, 200, 64, folder=tmp_path)


def test_torch_copies_on_a_stream_of_their_own(monkeypatch):
    """Each behind what was computed; and what is computed waits for the fetch of its frame, not for later ones."""
    torch = pytest.importorskip("torch")
    from refpeft_torch.paging import TorchFrames

    log = []

    class Stream:
        def wait_stream(self, other):
            log.append("copies wait")

        def record_event(self):
            log.append("event")
            return f"event {log.count('event')}"

        def wait_event(self, event):
            log.append(f"computation waits for {event}")

        def synchronize(self):
            log.append("host waits")

        def __enter__(self):
            log.append("copy")

        def __exit__(self, *_):
            pass

    compute = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    frames = TorchFrames(2, 8, "cpu")
    frames.copies = Stream()
    frames.fetch(0, np.arange(8, dtype=np.uint8))
    frames.fetch(1, np.ones(8, np.uint8))
    frames.ready(0)
    frames.spill(0, back := np.zeros(8, np.uint8))
    frames.settle()
    each = ["copies wait", "copy", "event"]
    assert log == [*each, *each, "computation waits for event 1", *each, "host waits"]
    assert back.tolist() == list(range(8))
    assert frames.view(1, 4, 8, "int32").tolist() == [0x01010101]


def test_paged_equals_unpaged_on_a_gpu():
    """With pinned pages, more of them than frames."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    start, results = torch.randn(10_007, device="cuda"), []
    for budget in (2 * 2**13, 2**20):
        p = start.clone()
        optimizer = PagedAdamW({"p": p}, lr=0.01, budget=budget, page_size=2**13, backend="torch", device=str(p.device))
        for step in range(5):
            optimizer.step({"p": torch.sin(p + step)})
        results.append(p)
    assert torch.equal(*results)
