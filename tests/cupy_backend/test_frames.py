"""Optimizers whose state is paged on a GPU, as far as that can be seen without one; and on one, where there is one."""

import fake_cupy
import numpy as np
import pytest

from refpeft import plugins
from refpeft.errors import CapabilityError
from refpeft.training import PagedAdam8bit, PagedAdamW

GPU = plugins.backend("cupy").unavailable()
SHAPES = {"a": (3, 100), "b": (700,), "c": ()}
PAGE = {PagedAdamW: 1024, PagedAdam8bit: 520}


def stepped(kind, library, frames, steps=4, folder=None):
    """Parameters after some steps, with so many pages on the device."""
    rng = np.random.default_rng(0)
    p = {name: library.asarray(rng.normal(size=s).astype(np.float32), "cuda:0") for name, s in SHAPES.items()}
    sizes = {"budget": frames * PAGE[kind], "page_size": PAGE[kind]}
    with kind(p, lr=0.01, **sizes, backend=library, device="cuda:0", folder=folder) as optimizer:
        for step in range(optimizer.steps, steps):
            rng = np.random.default_rng(step)
            g = {name: library.asarray(rng.normal(size=s).astype(np.float32), "cuda:0") for name, s in SHAPES.items()}
            optimizer.step(g)
    return {name: library.to_numpy(x) for name, x in p.items()}, optimizer


def equal_unpaged(kind, library, folder):
    """Bit for bit, in memory and from a file, with more pages than frames."""
    whole, _ = stepped(kind, library, 100)
    for frames in (1, 2, 3):
        parts, optimizer = stepped(kind, library, frames)
        assert optimizer.table.spilled > 0
        stepped(kind, library, frames, 2, folder / str(frames))
        resumed, _ = stepped(kind, library, frames, 4, folder / str(frames))
        for name, p in whole.items():
            assert parts[name].tobytes() == resumed[name].tobytes() == p.tobytes(), (frames, name)


@pytest.mark.shim
@pytest.mark.parametrize("kind", PAGE)
def test_paged_equals_unpaged_however_late_copies_are(kind, backend, tmp_path):
    """Every copy is done when somebody waits for it, and not before."""
    equal_unpaged(kind, backend, tmp_path)


@pytest.mark.skipif(GPU is not None, reason=str(GPU))
@pytest.mark.parametrize("kind", PAGE)
def test_paged_equals_unpaged_on_a_gpu(kind, tmp_path):
    """With pinned pages, and with those of a file."""
    equal_unpaged(kind, plugins.backend("cupy"), tmp_path)


def test_copies_are_on_a_stream_of_their_own(backend):
    """Each behind what was computed; and what is computed waits for the fetch of its frame, not for later ones."""
    frames = backend.frames(2, 8, "cuda:0")
    fake_cupy.LOG.clear()
    pages = frames.host(3)
    pages[:2] = np.arange(8), np.ones(8)
    frames.fetch(0, pages[0])
    frames.fetch(1, pages[1])
    frames.ready(0)
    frames.spill(0, pages[2])
    frames.settle()
    fetched, spilled = ["copies wait", "copy", "event"], ["copies wait", "copy"]
    assert [*fetched, *fetched, "computation waits for 1 copies", *spilled, "host waits"] == fake_cupy.LOG
    assert pages[2].tolist() == list(range(8))
    assert frames.view(1, 4, 8, "int32").get().tolist() == [0x01010101]


def test_another_device_than_the_current_one_is_refused(backend):
    """CuPy would compute on the current one."""
    with pytest.raises(CapabilityError, match="the current device, which is cuda:0, but cuda:1 came"):
        backend.frames(1, 8, "cuda:1")
