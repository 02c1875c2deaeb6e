"""Optimizers whose state is paged (after Dettmers et al. 2023, arXiv:2305.14314, section 3, whose pages the driver moves).

The parameters' elements are counted through, and each page holds the state of as many of them as fit. A step walks over the
pages, there and on the next step back, so that those used last are still there; on each it calls the operation of a backend with
the parts of parameters that the page belongs to, small ones one behind the other. An element's step does not depend on its
neighbours, or only on those of its block, which no page cuts: the results are those of an unpaged optimizer, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from refpeft import plugins
from refpeft.backend import Backend
from refpeft.errors import AttributeValueError, DtypeError, RefpeftError, ShapeError
from refpeft.operation import find
from refpeft.training.pages import PageTable, frame_count
from refpeft.training.store import FileStore, MemoryStore

PAGE = 2**20
"""Bytes of a page where nothing else is said."""
JOINED = 2**14
"""Elements of several parameters in one call at most: a call costs what some thousand elements do."""


class State(NamedTuple):
    """One array of state: its dtype, and how many elements of a parameter share one of its own."""

    dtype: str
    share: int = 1

    def bytes(self, elements: int) -> int:
        """What it takes for that many elements."""
        return -(-elements // self.share) * np.dtype(self.dtype).itemsize


class Piece(NamedTuple):
    """Elements ``start`` to ``stop`` of a parameter, whose state begins at element ``offset`` of a page."""

    name: str
    start: int
    stop: int
    offset: int


Stretch = list[Piece]
"""Pieces whose state lies side by side, and which have one learning rate: they are stepped by one call."""


class Paged:
    """What the paged optimizers share; use one of the subclasses.

    Parameters
    ----------
    parameters : mapping of str to array
        Contiguous float32 arrays of the backend, which steps change in place.
    lr : float or mapping of str to float
        The learning rate, of all or of each parameter (`refpeft.methods.LoRAPlus.learning_rates` gives LoRA+'s).
    budget : int
        How many bytes of state the device holds at most; a step's own results, of one page, come on top while it is computed.
    page_size : int
        Bytes of a page.
    folder : path-like, optional
        Where pages and parameters are kept in a file. If a run was there before, parameters and state are set to those after its
        last commit, whatever it was killed by.
    every : int
        After how many steps to commit.
    backend : str or Backend
    device : str
        On what the steps are computed.
    **numbers
        Attributes of the operation (``beta1``, ``decay``, ...).

    Attributes
    ----------
    steps : int
        How many are complete.
    table : PageTable

    Raises
    ------
    AttributeValueError, DtypeError, ShapeError, FormatError
        If the budget holds no page, a number is not one of the operation's, or the folder belongs to something else.
    """

    operation: ClassVar[str]
    state: ClassVar[dict[str, State]]

    def __init__(
        self,
        parameters: Mapping[str, Any],
        *,
        lr: float | Mapping[str, float],
        budget: int,
        page_size: int = PAGE,
        folder: str | os.PathLike[str] | None = None,
        every: int = 1,
        backend: str | Backend = "reference",
        device: str = "cpu",
        **numbers,
    ):
        self.rates = dict(lr) if isinstance(lr, Mapping) else dict.fromkeys(parameters, lr)
        self.numbers, self.every, self.steps, self._torn = numbers, every, 0, False
        self._backend = plugins.backend(backend)
        self._forward = self._backend.implementation(self.operation).forward
        self._flat = {name: _flat(name, p) for name, p in parameters.items()}
        self._check()
        self._lay_out(page_size)
        count, shapes = len(self._pages), {name: list(p.shape) for name, p in parameters.items()}
        behind = -(-4 * sum(p.shape[0] for p in self._flat.values()) // page_size)
        frames = min(frame_count(budget, page_size), count)
        self._frames = self._backend.frames(frames, page_size, device)
        longest = max((_length(stretch) for page in self._pages for stretch in page if len(stretch) > 1), default=0)
        self._room = self._backend.frames(2, 4 * longest, device)
        layout = {"operation": self.operation, "page_size": page_size, "parameters": shapes}
        self._store = (
            MemoryStore(self._frames.host(count))
            if folder is None
            else FileStore(folder, count + behind, page_size, layout)
        )
        self.table = PageTable(self._store, self._frames, frames)
        if self._store.steps is None:
            self.commit()
        else:
            self.steps = self._store.steps
            self._restore()

    def step(self, gradients: Mapping[str, Any], factor: float = 1.0) -> None:
        """One step; the state that it began from stays committed until the whole step is done.

        Parameters
        ----------
        gradients : mapping of str to array
            One for each parameter, of its shape.
        factor : float
            On the learning rates, as schedules give it.
        """
        flat, number = self._gradients(gradients), self.steps + 1
        self._require_whole()
        self._torn = True
        order = list(range(len(self._pages)))[:: 1 if number % 2 else -1]
        for page, following in zip(order, [*order[1:], None]):
            frame = self.table.use(page)
            if following is not None:
                self.table.prefetch(following)
            for stretch in self._pages[page]:
                self._update(number, frame, stretch, flat, factor * self.rates[stretch[0].name])
        self.steps, self._torn = number, False
        if self.steps % self.every == 0:
            self.commit()

    def commit(self) -> None:
        """Make the state after the last step the one that a killed run goes on from."""
        if isinstance(self._store, MemoryStore):
            return
        self._require_whole()
        self.table.flush()
        for page, part in self._parameter_pages():
            self._store.next(page)[: part.size] = part
        self._store.commit(self.steps)

    def close(self) -> None:
        """Leave the folder to others; what was stepped after the last commit is forgotten."""
        self._store.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _require_whole(self) -> None:
        if self._torn:
            raise RefpeftError(
                f"{self.operation}: step {self.steps + 1} was interrupted, so that parts of parameters and state are those of "
                "before and parts of after it; a new optimizer on the folder goes on from the last commit."
            )

    def _update(self, number: int, frame: int, stretch: Stretch, gradients: Mapping[str, Any], rate: float) -> None:
        """The operation, at the step of that number, on one stretch, whose results replace parameters and state."""
        parts = [self._flat[name][start:stop] for name, start, stop, _ in stretch]
        states = []
        for state, base in zip(self.state.values(), self._bases):
            first = base + state.bytes(stretch[0].offset)
            last = first + state.bytes(_length(stretch))
            states.append(self._frames.view(frame, first, last, state.dtype))
        counted = {"step": number} if "step" in find(self.operation).attributes else {}
        p, grad = self._joined(0, parts), self._joined(1, [gradients[n][start:stop] for n, start, stop, _ in stretch])
        (stepped, *results), _ = self._forward(p, grad, *states, residuals=False, lr=rate, **counted, **self.numbers)
        for array, result in zip(states, results):
            array[:] = result
        at = 0
        for part in parts:
            part[:] = stepped[at : at + part.shape[0]]
            at += part.shape[0]

    def _joined(self, place: int, parts: list):
        """Arrays one behind the other, in memory that is kept for it, unless there is but one."""
        if len(parts) == 1:
            return parts[0]
        whole, at = self._room.view(place, 0, 4 * sum(part.shape[0] for part in parts), "float32"), 0
        for part in parts:
            whole[at : at + part.shape[0]] = part
            at += part.shape[0]
        return whole

    def _lay_out(self, page_size: int) -> None:
        """Which stretches each page holds, and where in a page each array of state begins."""
        block = max(s.share for s in self.state.values())
        room = page_size // sum(s.bytes(block) for s in self.state.values()) * block
        if room < 1:
            raise AttributeValueError(
                f"{self.operation}: the state of {block} elements must fit into a page, but a page has {page_size} bytes."
            )
        sizes = [s.bytes(room) for s in self.state.values()]
        self._bases = [sum(sizes[:i]) for i in range(len(sizes))]
        self._pages: list[list[Stretch]] = []
        at = 0
        for name, flat in self._flat.items():
            start = 0
            while start < flat.shape[0]:
                page, offset = divmod(at, room)
                stop = min(flat.shape[0], start + room - offset)
                self._pages += [[] for _ in range(page + 1 - len(self._pages))]
                self._append(self._pages[page], Piece(name, start, stop, offset))
                at += -(-(stop - start) // block) * block
                start = stop

    def _append(self, page: list[Stretch], piece: Piece) -> None:
        """Put a piece behind the others of a page."""
        longer = [*page[-1], piece] if page else [piece]
        behind = page and piece.offset == page[-1][0].offset + _length(page[-1])
        if behind and _length(longer) <= JOINED and self.rates[piece.name] == self.rates[longer[0].name]:
            page[-1] = longer
        else:
            page.append([piece])

    def _parameter_pages(self):
        """Pages of the store behind those of the state, and the bytes of the parameters that belong there."""
        every = np.concatenate([self._backend.to_numpy(p) for p in self._flat.values()]).view(np.uint8)
        size = self._store.current(0).size
        for number, start in enumerate(range(0, every.size, size)):
            yield len(self._pages) + number, every[start : start + size]

    def _restore(self) -> None:
        """The parameters as they were committed."""
        every = np.concatenate([self._store.current(page)[: part.size] for page, part in self._parameter_pages()])
        at, numbers = 0, every.view(np.float32)
        for flat in self._flat.values():
            flat[:] = self._backend.asarray(numbers[at : at + flat.shape[0]].copy(), self._backend.device_of(flat))
            at += flat.shape[0]

    def _gradients(self, gradients: Mapping[str, Any]) -> dict[str, Any]:
        if gradients.keys() != self._flat.keys():
            raise ShapeError(
                f"{self.operation}: gradients of {sorted(self._flat)} are needed, but {sorted(gradients)} came."
            )
        flat = {name: g.reshape(-1) for name, g in gradients.items()}
        for name, g in flat.items():
            size = self._flat[name].shape[0]
            if g.shape[0] != size or g.dtype != self._flat[name].dtype:
                raise ShapeError(
                    f"{self.operation}: {name} has {size} elements of float32, but its gradient {g.shape[0]} of {_dtype(g)}."
                )
        return flat

    def _check(self) -> None:
        """The numbers, once with each rate, as the operation wants them."""
        operation = find(self.operation)
        if not any(p.shape[0] for p in self._flat.values()):
            raise ShapeError(f"{self.operation}: parameters with at least one element are needed, but none came.")
        if self.rates.keys() != self._flat.keys():
            raise AttributeValueError(
                f"{self.operation}: a learning rate for each of {sorted(self._flat)} is needed, but {sorted(self.rates)} came."
            )
        if self.every < 1:
            raise AttributeValueError(f"{self.operation}: every must be at least 1, but {self.every} came.")
        counted = {"step": 1} if "step" in operation.attributes else {}
        for rate in self.rates.values():
            attributes = operation.check_attributes(self.numbers | counted | {"lr": rate})
            operation.check_shapes({a.name: (1,) for a in operation.signature.inputs}, attributes)


def _length(stretch: Stretch) -> int:
    """How many elements it has."""
    return stretch[-1].offset + stretch[-1].stop - stretch[-1].start - stretch[0].offset


def _flat(name: str, parameter):
    """All elements of a parameter along one axis, in its own memory."""
    parameter = parameter.detach() if hasattr(parameter, "detach") else parameter
    whole = parameter.is_contiguous() if hasattr(parameter, "is_contiguous") else parameter.flags.c_contiguous
    if _dtype(parameter) != "float32" or not whole:
        kind = "contiguous" if whole else "not contiguous"
        raise DtypeError(
            f"{name}: a paged optimizer steps contiguous float32 arrays, but {_dtype(parameter)}, {kind}, came."
        )
    return parameter.reshape(-1)


def _dtype(array) -> str:
    return str(array.dtype).removeprefix("torch.")


_MOMENTS = {"m": State("float32"), "v": State("float32")}


class PagedSGD(Paged):
    """`sgd.step`, paged."""

    operation = "sgd.step"
    state: ClassVar = {"buffer": State("float32")}


class PagedAdam(Paged):
    """`adam.step`, paged."""

    operation = "adam.step"
    state: ClassVar = _MOMENTS


class PagedAdamW(Paged):
    """`adamw.step`, paged.

    >>> weight = np.ones((2, 2), np.float32)
    >>> optimizer = PagedAdamW({"weight": weight}, lr=0.5, budget=64, page_size=16, decay=0.0)
    >>> optimizer.step({"weight": np.array([[1, 2], [-3, 0]], np.float32)})
    >>> weight
    array([[0.5, 0.5],
           [1.5, 1. ]], dtype=float32)
    """

    operation = "adamw.step"
    state: ClassVar = _MOMENTS


class PagedAdam8bit(Paged):
    """`adam8bit.step`, paged: a quarter of the state, in blocks that begin with each parameter."""

    operation = "adam8bit.step"
    state: ClassVar = {
        "m": State("uint8"),
        "v": State("uint8"),
        "m_absmax": State("float32", 256),
        "v_absmax": State("float32", 256),
    }


class PagedLion(Paged):
    """`lion.step`, paged."""

    operation = "lion.step"
    state: ClassVar = {"m": State("float32")}
