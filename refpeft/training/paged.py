"""Optimizers whose state is paged (after Dettmers et al. 2023, arXiv:2305.14314, section 3, whose pages the driver moves).

The parameters' elements are counted through, and each page holds the state of as many of them as fit. A step walks over the
pages, there and on the next step back, so that those used last are still there; on each it calls the operation of a backend with
the parts of parameters that the page belongs to. An element's step does not depend on its neighbours, or only on those of its
block, which no page cuts: the results are those of an unpaged optimizer, bit for bit.
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
        count, shapes = len(self._pieces), {name: list(p.shape) for name, p in parameters.items()}
        behind = -(-4 * sum(p.shape[0] for p in self._flat.values()) // page_size)
        frames = min(frame_count(budget, page_size), count)
        self._frames = self._backend.frames(frames, page_size, device)
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
        order = list(range(len(self._pieces)))[:: 1 if number % 2 else -1]
        for page, following in zip(order, [*order[1:], None]):
            frame = self.table.use(page)
            if following is not None:
                self.table.prefetch(following)
            for piece in self._pieces[page]:
                self._update(number, frame, piece, flat[piece.name], factor * self.rates[piece.name])
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

    def _update(self, number: int, frame: int, piece: Piece, gradient, rate: float) -> None:
        """The operation, at the step of that number, on one piece, whose results replace parameter and state."""
        part = slice(piece.start, piece.stop)
        arrays = [self._flat[piece.name][part]]
        for state, base in zip(self.state.values(), self._bases):
            first = base + state.bytes(piece.offset)
            last = first + state.bytes(piece.stop - piece.start)
            arrays.append(self._frames.view(frame, first, last, state.dtype))
        counted = {"step": number} if "step" in find(self.operation).attributes else {}
        results, _ = self._forward(
            arrays[0], gradient[part], *arrays[1:], residuals=False, lr=rate, **counted, **self.numbers
        )
        for array, result in zip(arrays, results):
            array[:] = result

    def _lay_out(self, page_size: int) -> None:
        """Which pieces each page holds, and where in a page each array of state begins."""
        block = max(s.share for s in self.state.values())
        room = page_size // sum(s.bytes(block) for s in self.state.values()) * block
        if room < 1:
            raise AttributeValueError(
                f"{self.operation}: the state of {block} elements must fit into a page, but a page has {page_size} bytes."
            )
        sizes = [s.bytes(room) for s in self.state.values()]
        self._bases = [sum(sizes[:i]) for i in range(len(sizes))]
        self._pieces: list[list[Piece]] = []
        at = 0
        for name, flat in self._flat.items():
            start = 0
            while start < flat.shape[0]:
                page, offset = divmod(at, room)
                stop = min(flat.shape[0], start + room - offset)
                self._pieces += [[] for _ in range(page + 1 - len(self._pieces))]
                self._pieces[page].append(Piece(name, start, stop, offset))
                at += -(-(stop - start) // block) * block
                start = stop

    def _parameter_pages(self):
        """Pages of the store behind those of the state, and the bytes of the parameters that belong there."""
        every = np.concatenate([self._backend.to_numpy(p) for p in self._flat.values()]).view(np.uint8)
        size = self._store.current(0).size
        for number, start in enumerate(range(0, every.size, size)):
            yield len(self._pieces) + number, every[start : start + size]

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
            if g.shape[0] != size or _dtype(g) != "float32":
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
